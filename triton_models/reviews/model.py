"""A bag of hashed character n-grams under a linear head (Joulin et al., 2016, https://arxiv.org/abs/1607.01759)."""

from __future__ import annotations

from torch import Tensor, nn

from schemas.tensors import InputShape

WIDTH = 32
SCALE = 10.0
"""An update is some 25 steps, and a step of AdamW moves a weight by about its rate of 1e-3: nothing beside embeddings drawn from
N(0, 1), as is the default. So they begin near zero, where an n-gram never seen says nothing, and their mean is scaled up."""


class ReviewsBag(nn.Module):
    """The mean embedding of the n-grams of `text`. Logits [rows, outputs]; a row without n-grams gets the head's bias."""

    def __init__(self, shape: InputShape) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(shape.texts["text"], WIDTH, mode="mean")
        nn.init.normal_(self.bag.weight, std=0.02)
        self.head = nn.Linear(WIDTH, shape.outputs)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        bag = self.bag(inputs["text_ids"], inputs["text_offsets"])
        logits: Tensor = self.head(bag * SCALE)
        return logits
