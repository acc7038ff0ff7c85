"""Metrics of a classifier from sums that merge: a confusion matrix, a sum of losses, a sum of Brier scores.

Averages go over the classes that occur, as a truth or as a prediction (what scikit-learn does by default); a ratio with an empty
denominator counts as 0.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stats.histogram import Counts

SMALLEST_PROBABILITY: Final = float(np.finfo(np.float32).eps)
"""A probability of 0 for what came true would cost infinitely much."""


class Report(NamedTuple):
    """Metrics of one confusion matrix, each in [0, 1]."""

    accuracy: float
    precision_macro: float
    recall_macro: float
    f1_macro: float
    f1_weighted: float


def report(confusion: Counts) -> Report | None:
    """The metrics of `confusion`, shape (classes, classes), truth by row and prediction by column; None if it is empty.

    >>> report(np.array([[3, 1], [0, 4]])).accuracy
    0.875
    """
    total = int(confusion.sum())
    if total <= 0:
        return None
    hits = np.diagonal(confusion).astype(np.float64)
    truths, predictions = confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = _ratio(hits, predictions), _ratio(hits, truths)
    f1 = _ratio(2 * hits, truths + predictions)
    occurs = (truths + predictions) > 0
    return Report(
        accuracy=float(hits.sum() / total),
        precision_macro=float(precision[occurs].mean()),
        recall_macro=float(recall[occurs].mean()),
        f1_macro=float(f1[occurs].mean()),
        f1_weighted=float((f1 * truths).sum() / total),
    )


def log_losses(scores: NDArray[np.float32], truths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Minus the log of the probability given to the truth, shape (rows,); `scores` (rows, classes), `truths` (rows,) class indices."""
    given = scores[np.arange(len(truths)), truths].astype(np.float64)
    return np.asarray(-np.log(np.clip(given, SMALLEST_PROBABILITY, 1.0)))


def brier_scores(scores: NDArray[np.float32], truths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Squared distance to the truth's unit vector, summed over classes, in [0, 2], shape (rows,) (Brier 1950)."""
    distance = scores.astype(np.float64)
    distance[np.arange(len(truths)), truths] -= 1.0
    return np.asarray(np.square(distance).sum(axis=1))


def _ratio(numerator: NDArray[np.float64], denominator: Counts) -> NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)
