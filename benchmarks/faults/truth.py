"""The right answer to each request: the harness's own arithmetic over an artifact's numbers, none of the product's code."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from benchmarks.faults.rows import MODEL
from runtime.artifacts import ArtifactStore

TOLERANCE: Final = 1e-4
"""Of a probability: float32 sums in another order stay well below."""

Floats = NDArray[np.float64]


class Linear(NamedTuple):
    """A version: (numbers - mean) / std @ weight.T + bias, and the softmax of that."""

    mean: Floats
    std: Floats
    weight: Floats
    """[classes, numbers]"""
    bias: Floats

    def scores(self, numbers: Floats) -> Floats:
        """A probability per class, [n, classes], for [n, numbers]."""
        logits = (numbers - self.mean) / self.std @ self.weight.T + self.bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: Floats = powers / powers.sum(axis=1, keepdims=True)
        return found


class Truth(NamedTuple):
    """Who answers, and whose copies are kept."""

    live: Linear
    shadow: Linear


def read(store: ArtifactStore, artifact: str) -> Linear:
    """The version in an artifact."""
    opened = store.open(MODEL, artifact)
    weights = {name: array.astype(np.float64) for name, array in load_file(opened.weights_path).items()}
    state = opened.features
    return Linear(
        state["mean"].astype(np.float64),
        state["std"].astype(np.float64),
        weights["layer.weight"],
        weights["layer.bias"],
    )


def differs(expected: Floats, scores: Floats, label: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where an answer is not the right one: [n, 2] scores, and the label's index, whatever it is where both classes are equally likely."""
    far = ~(np.abs(expected - scores) <= TOLERANCE).all(axis=1)
    clear = np.abs(expected[:, 1] - expected[:, 0]) > 2 * TOLERANCE
    found: NDArray[np.bool_] = far | (clear & (label != expected.argmax(axis=1)))
    return found
