"""A bag of hashed character n-grams under a linear head (Joulin et al., 2016, https://arxiv.org/abs/1607.01759)."""

from __future__ import annotations

from torch import Tensor, nn

from schemas.tensors import InputShape

WIDTH = 32


class ReviewsBag(nn.Module):
    """The mean embedding of the n-grams of `text`. Logits [rows, outputs]; a row without n-grams gets the head's bias."""

    def __init__(self, shape: InputShape) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(shape.texts["text"], WIDTH, mode="mean")
        self.head = nn.Linear(WIDTH, shape.outputs)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.head(self.bag(inputs["text_ids"], inputs["text_offsets"]))
        return logits
