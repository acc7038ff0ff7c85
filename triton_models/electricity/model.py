"""A small multi-layer perceptron over the dense tensor."""

from __future__ import annotations

from torch import Tensor, nn

from schemas.tensors import DENSE, InputShape

HIDDEN = 64


class ElectricityMLP(nn.Module):
    """Two hidden layers of 64. Logits [rows, outputs] from `dense` [rows, width]."""

    def __init__(self, shape: InputShape) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(shape.dense, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, shape.outputs),
        )  # fmt: skip

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.layers(inputs[DENSE])
        return logits
