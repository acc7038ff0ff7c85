"""Latencies in a histogram of logarithmic bins: percentiles to within one per cent, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

LOWEST_MS: Final = 0.001
WIDTH: Final = 0.01
"""A bin's upper edge is so much above its lower."""
BINS: Final = 2400
"""Up to about 23 million ms."""


class Histogram:
    """Counts by bin."""

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self._largest_ms = 0.0

    def add(self, latencies_ms: Iterable[float]) -> None:
        """Add any number of latencies; what is below `LOWEST_MS` counts as that."""
        values = np.fromiter(latencies_ms, np.float64)
        if not len(values):
            return
        places = np.log(np.maximum(values, LOWEST_MS) / LOWEST_MS) / np.log1p(WIDTH)
        np.add.at(self.counts, np.minimum(places.astype(np.int64), BINS - 1), 1)
        self._largest_ms = max(self._largest_ms, float(values.max()))

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def percentile_ms(self, percent: float) -> float:
        """The upper edge of the bin below which `percent` of all lie.

        Raises:
            ValueError: nothing was added.
        """
        if not self.count:
            raise ValueError("percentile of an empty histogram")
        rank = max(1, int(np.ceil(self.count * percent / 100)))
        place = int(np.searchsorted(np.cumsum(self.counts), rank))
        return min(float(LOWEST_MS * (1 + WIDTH) ** (place + 1)), self._largest_ms)

    def drawn(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """`count` latencies (ms) drawn from the distribution, each the middle of its bin."""
        places = rng.choice(BINS, count, p=self.counts / self.count)
        middles = LOWEST_MS * np.exp(np.log1p(WIDTH) * (np.arange(BINS) + 0.5))
        drawn: NDArray[np.float64] = middles[places]
        return drawn


def sum_percentile_ms(parts: list[Histogram], percent: float, seed: int = 0, draws: int = 200_000) -> float:
    """The percentile of the sum of independent latencies, one of each part. Percentiles themselves do not add."""
    rng = np.random.default_rng(seed)
    return float(np.percentile(sum(part.drawn(draws, rng) for part in parts), percent))
