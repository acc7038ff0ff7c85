"""Population stability index: how far a window's histogram is from the reference's.

PSI = sum over bins of (q - p) ln(q / p), the symmetric Kullback-Leibler divergence of reference shares p and window shares q
(Siddiqi, *Credit Risk Scorecards*, 2006; Jeffreys 1946). By custom 0.1 is worth a look and 0.25 a change; that custom knows no sample size.
Without drift PSI / (1/n + 1/m) is about chi-square with bins - 1 degrees of freedom (Yurdakul and Naranjo, *Statistical
properties of the population stability index*, Journal of Risk Model Validation 14(4), 2020), so small windows need the higher
threshold that `psi_noise` gives. It is a heuristic all the same: rows are taken as independent, and windows are tested again and again.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from schemas.artifact import Reference
from stats.histogram import CHARACTER_BINS, Counts

SMOOTHING: Final = 0.5
"""Added to every bin, so that an empty one has a logarithm."""
NOISE_QUANTILE: Final = 0.999
CHARACTER_DESIGN_EFFECT: Final = 10.0
"""Characters of one text are not independent: ten of them are taken to say as much as one independent one. A heuristic."""


class Stability(NamedTuple):
    """One comparison."""

    statistic: float
    """PSI."""
    noise: float
    """What PSI stays below in `NOISE_QUANTILE` of comparisons of equal distributions at these sample sizes."""


def psi(reference: Counts, window: Counts) -> float:
    """The index of two histograms over the same bins, each of shape (bins,); 0 if they are alike, symmetric in its arguments.

    >>> psi(np.array([50, 50]), np.array([500, 500])) < 1e-4
    True
    """
    p, q = _shares(reference), _shares(window)
    return float(np.sum((q - p) * np.log(q / p)))


def psi_noise(bins: int, n: float, m: float, quantile: float = NOISE_QUANTILE) -> float:
    """The `quantile` of PSI without drift, for `n` and `m` independent observations in `bins` bins that occur; its mean is
    (bins - 1) (1/n + 1/m)."""
    if bins < 2 or n <= 0 or m <= 0:
        return 0.0
    # scipy.stats.chi2.ppf(quantile, …), without importing scipy.stats: 2 s and 50 MiB.
    return float(chdtri(bins - 1, 1.0 - quantile)) * (1.0 / n + 1.0 / m)


def stability(reference: Reference, window: Counts) -> Stability:
    """`window`, counted in the bins of `reference`, against it. Of a text the characters and the lengths are compared apart, and the
    one further beyond its own noise is told."""
    base = np.array(reference.counts, dtype=np.int64)
    if reference.kind != "characters":
        return _compare(base, window, 1.0)
    characters = _compare(base[:CHARACTER_BINS], window[:CHARACTER_BINS], CHARACTER_DESIGN_EFFECT)
    lengths = _compare(base[CHARACTER_BINS:], window[CHARACTER_BINS:], 1.0)
    return max(characters, lengths, key=lambda found: found.statistic - found.noise)


def _compare(reference: Counts, window: Counts, design_effect: float) -> Stability:
    bins = int(np.count_nonzero(reference + window))
    n, m = float(reference.sum()) / design_effect, float(window.sum()) / design_effect
    return Stability(psi(reference, window), psi_noise(bins, n, m))


def _shares(counts: Counts) -> NDArray[np.float64]:
    smoothed = counts + SMOOTHING
    return np.asarray(smoothed / smoothed.sum(), dtype=np.float64)
