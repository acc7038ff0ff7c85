"""The optimizer of embedding tables against torch's own."""

from __future__ import annotations

import torch
from torch import nn

from training.lazy_adam import LazyAdam


def test_it_moves_a_table_as_sparse_adam_does() -> None:
    torch.manual_seed(1)
    ours, theirs = (nn.EmbeddingBag(50, 4, mode="mean", sparse=True) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    before = ours.weight.detach().clone()
    lazy, sparse = LazyAdam([ours.weight], 0.01), torch.optim.SparseAdam([theirs.weight], 0.01)
    for _ in range(20):
        ids, wanted = torch.randint(0, 30, (6, 5)), torch.randn(6, 4)
        for table, optimizer in ((ours, lazy), (theirs, sparse)):
            optimizer.zero_grad()
            (table(ids) - wanted).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    assert torch.equal(ours.weight[30:], before[30:]), "rows that no step held"
    assert not torch.equal(ours.weight[:30], before[:30])
