"""The betting test keeps its false-alarm budget under continuous looking, and finds what is there."""

from __future__ import annotations

import numpy as np
import pytest

from stats.sequential import BettingTest, advance

ALPHA = 0.05


def test_false_alarms_stay_within_the_budget_though_looked_at_after_every_row() -> None:
    generator = np.random.default_rng(7)
    alarms = sum(
        advance(
            BettingTest(bound=1.0), generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=2000)
        ).rejects(ALPHA)
        for _ in range(400)
    )
    # 400 runs at 5 %: 20 expected at most; 35 is above the 99.9th percentile of that binomial.
    assert alarms <= 35


def test_a_mean_above_zero_is_found() -> None:
    generator = np.random.default_rng(8)
    found = [
        advance(
            BettingTest(bound=1.0), generator.choice([-1.0, 0.0, 1.0], p=[0.08, 0.80, 0.12], size=4000)
        ).rejects(ALPHA)
        for _ in range(50)
    ]
    assert np.mean(found) > 0.9


def test_the_split_into_calls_at_the_chunk_length_does_not_matter() -> None:
    x = np.random.default_rng(9).uniform(-1, 1, size=640)
    whole = advance(BettingTest(bound=1.0), x)
    parts = BettingTest(bound=1.0)
    for start in range(0, len(x), 64):
        parts = advance(parts, x[start : start + 64])
    assert parts.rows == whole.rows
    assert parts.log_e == pytest.approx(whole.log_e)


def test_a_value_below_the_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="expected finite"):
        advance(BettingTest(bound=1.0), np.array([-1.5]))
