"""What counts as flat."""

from __future__ import annotations

from benchmarks.outage import drift_pct, growth_pct

MB = 1_000_000


def test_growth_is_from_peak_to_peak() -> None:
    assert growth_pct([80 * MB, 100 * MB, 90 * MB], [95 * MB, 112 * MB, 90 * MB]) == 12.0
    assert growth_pct([100 * MB], [80 * MB, 75 * MB]) == -20.0


def test_drift_is_from_the_second_fifth_to_the_last_and_one_spike_is_none() -> None:
    leaking = [(100 + second) * MB for second in range(100)]
    assert drift_pct(leaking) > 40
    flat = [100 * MB] * 100
    flat[-3] = 200 * MB
    assert drift_pct(flat) == 0.0
    assert drift_pct([100 * MB]) == 0.0
