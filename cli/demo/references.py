"""What else could have been done with the same rows and the same late labels: computed afterwards, never shown to the loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import HashingVectorizer

REFITS: Final = 20
TEXT_COLUMNS: Final = 256

Labels = NDArray[np.int64]
Progress = Callable[[str, float], None]


def available(first: int, rows: int, delay: int, refits: int = REFITS) -> Iterator[tuple[slice, int]]:
    """`refits` stretches of the replayed rows, each with how many rows have a label when it begins.

    >>> list(available(first=10, rows=14, delay=1))[:2]
    [(slice(10, 11, None), 10), (slice(11, 12, None), 10)]
    """
    edges = np.unique(np.linspace(first, rows, refits + 1).astype(int))
    for start, end in itertools.pairwise(edges):
        yield slice(int(start), int(end)), max(int(start) - delay, first)


def no_change(labels: Labels, first: int, delay: int) -> NDArray[np.bool_]:
    """Whether the last available label would have been right, for each replayed row: shape (rows - first,)."""
    rows = np.arange(first, len(labels))
    return np.equal(labels[rows], labels[np.maximum(rows - delay, 0)], dtype=np.bool_)


def majority(labels: Labels, first: int) -> NDArray[np.bool_]:
    """Whether the most frequent class of the rows that trained version 1 would have been right."""
    return np.equal(labels[first:], np.bincount(labels[:first]).argmax(), dtype=np.bool_)


def boosting(
    columns: NDArray[np.float32],
    labels: Labels,
    first: int,
    delay: int,
    seed: int,
    refit: bool,
    progress: Progress,
) -> NDArray[np.bool_]:
    """Gradient boosting, fitted once, or refitted on all labels so far `REFITS` times: whether it was right, shape (rows - first,)."""
    right = np.empty(len(labels) - first, dtype=bool)
    model = None
    stretches = list(available(first, len(labels), delay))
    for number, (stretch, labelled) in enumerate(stretches):
        if model is None or refit:
            model = HistGradientBoostingClassifier(random_state=seed).fit(
                columns[:labelled], labels[:labelled]
            )
        right[stretch.start - first : stretch.stop - first] = (
            model.predict(columns[stretch]) == labels[stretch]
        )
        progress("gradient boosting", (number + 1) / len(stretches))
    return right


def text_columns(texts: list[str]) -> NDArray[np.float32]:
    """Hashed character 1- and 2-grams, for a model that takes no text."""
    hashed = HashingVectorizer(
        analyzer="char", ngram_range=(1, 2), n_features=TEXT_COLUMNS, alternate_sign=False
    )
    return np.asarray(hashed.transform(texts).toarray(), dtype=np.float32)


def rolling(right: NDArray[np.bool_], window: int) -> NDArray[np.float64]:
    """Share of right answers over the last `window` rows, from the first full window on: shape (n - window + 1,)."""
    sums = np.concatenate([[0.0], np.cumsum(right, dtype=np.float64)])
    shares: NDArray[np.float64] = (sums[window:] - sums[:-window]) / window
    return shares
