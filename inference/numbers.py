"""The ranges of numeric features, checked on columns: a quarter of the time that a check per value takes while parsing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.explain import bounds_of
from schemas.spec import ModelSpec

WIDE: Final = 64
"""Numbers a row, from which on all are sooner seen to be good by the least and the greatest of each column: a third of the time at 784."""


@dataclass(frozen=True, eq=False)
class Ranges:
    """What each number may be: three arrays of [width]."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    optional: NDArray[np.bool_]

    @classmethod
    def of(cls, spec: ModelSpec) -> Ranges:
        """The ranges of `spec.numbers`."""
        low, high = (
            np.array([bounds_of(spec.features[name]) for name in spec.numbers], np.float64).reshape(-1, 2).T
        )
        optional = np.array([spec.features[name].missing != "reject" for name in spec.numbers], bool)
        return cls(low, high, optional)

    def outside(self, numbers: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        """Rows of `numbers` [rows, width] with a number that cannot be served; NaN is missing."""
        if numbers.shape[1] >= WIDE and len(numbers) and self._are_extremes_good(numbers):
            return np.zeros(0, np.int64)
        good = (numbers >= self.low) & (numbers <= self.high)
        if good.all():
            return np.zeros(0, np.int64)
        return np.flatnonzero(~(good | (np.isnan(numbers) & self.optional)).all(axis=1))

    def _are_extremes_good(self, numbers: NDArray[np.floating[Any]]) -> bool:
        """An extreme of numbers with a NaN is one, and is not good."""
        return bool((numbers.min(axis=0) >= self.low).all() and (numbers.max(axis=0) <= self.high).all())
