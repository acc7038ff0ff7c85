"""Losses of a batch of predictions against their truths, vectorised."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

SMALLEST_PROBABILITY: Final = 1e-7
"""Probabilities are clipped here, so that one confident mistake costs at most 16.1."""

Floats = NDArray[np.float64]


class Losses(NamedTuple):
    """One value a row."""

    loss: Floats
    brier: Floats


def classification(scores: Floats, truth: NDArray[np.int64]) -> Losses:
    """Log loss of the true class, and the multi-class Brier score (Brier 1950: 0 to 2).

    `scores`: probabilities, shape (rows, classes); `truth`: index of the true class, shape (rows,).

    >>> losses = classification(np.array([[0.25, 0.75]]), np.array([1]))
    >>> float(losses.loss[0].round(4)), float(losses.brier[0])
    (0.2877, 0.125)
    """
    rows = np.arange(len(scores))
    loss = -np.log(np.clip(scores[rows, truth], SMALLEST_PROBABILITY, 1.0))
    errors = scores.copy()
    errors[rows, truth] -= 1.0
    return Losses(loss, np.square(errors).sum(axis=1))


def regression(scores: Floats, truth: Floats) -> Losses:
    """Squared error; no Brier score. `scores`: shape (rows, 1); `truth`: shape (rows,)."""
    return Losses(np.square(scores[:, 0] - truth), np.zeros(len(scores)))
