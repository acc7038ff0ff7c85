"""PSI: symmetric, zero for equals, and quiet without drift at any sample size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from schemas.artifact import Reference
from stats.histogram import TEXT_BINS, Counts
from stats.psi import psi, psi_noise, stability

histograms = st.lists(st.integers(0, 10_000), min_size=4, max_size=4).map(lambda counts: np.array(counts))


@given(histograms, histograms)
def test_psi_is_symmetric_and_never_negative(a: Counts, b: Counts) -> None:
    assert psi(a, b) == pytest.approx(psi(b, a))
    assert psi(a, b) >= 0


@given(histograms)
def test_psi_of_a_histogram_with_itself_is_zero(a: Counts) -> None:
    assert psi(a, a) == 0


def test_psi_by_hand() -> None:
    # Large counts, so that smoothing does not show: shares .5/.5 against .8/.2.
    expected = 0.3 * np.log(0.8 / 0.5) + (-0.3) * np.log(0.2 / 0.5)
    assert psi(np.array([5_000_000, 5_000_000]), np.array([8_000_000, 2_000_000])) == pytest.approx(
        expected, rel=1e-5
    )


def test_noise_is_chi_square() -> None:
    assert psi_noise(10, 500, 5000, 0.99) == pytest.approx(chi2.ppf(0.99, 9) * (1 / 500 + 1 / 5000))
    assert psi_noise(1, 500, 5000) == 0.0


@pytest.mark.parametrize("rows", [100, 500, 5000])
def test_equal_distributions_stay_below_the_noise(rows: int) -> None:
    rng = np.random.default_rng(rows)
    shares = np.full(10, 0.1)
    beyond = 0
    for _ in range(2000):
        reference = Reference(kind="edges", counts=rng.multinomial(5000, shares).tolist())
        found = stability(reference, rng.multinomial(rows, shares))
        beyond += found.statistic > found.noise
    assert beyond <= 10  # 2 are expected


def test_a_change_of_length_alone_is_seen_in_a_text() -> None:
    counts, longer = np.zeros(TEXT_BINS, dtype=np.int64), np.zeros(TEXT_BINS, dtype=np.int64)
    counts[:256], longer[:256] = 400, 800
    counts[256 + 5], longer[256 + 6] = 1000, 1000
    found = stability(Reference(kind="characters", counts=counts.tolist()), longer)
    assert found.statistic > 1 > found.noise
