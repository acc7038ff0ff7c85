"""The loss detector finds a change, where it was and which way, and goes on after a restart as if there had been none."""

from __future__ import annotations

import numpy as np

from stats.adwin import LossDetector


def errors(seed: int, *levels: tuple[int, float]) -> list[float]:
    rng = np.random.default_rng(seed)
    return [float(value) for rows, level in levels for value in rng.random(rows) < level]


def test_a_rise_and_a_fall_are_found_with_their_levels() -> None:
    rise, fall = LossDetector(0.002).update(errors(0, (3000, 0.1), (2000, 0.3), (3000, 0.1)))
    assert rise.worse and not fall.worse
    assert abs(rise.before - 0.1) < 0.03 and abs(rise.after - 0.3) < 0.1
    assert abs(rise.rows_before - 3000) < 50
    assert abs(rise.after - rise.before) > rise.threshold


def test_an_even_stream_gives_no_change() -> None:
    assert sum(len(LossDetector(0.002).update(errors(seed, (10_000, 0.2)))) for seed in range(10)) == 0


def test_a_restart_anywhere_changes_nothing() -> None:
    stream = errors(1, (3000, 0.1), (1500, 0.35))
    whole = LossDetector(0.002).update(stream)
    detector, found = LossDetector(0.002), []
    for start in range(0, len(stream), 77):
        detector = LossDetector(0.002, detector.to_bytes())
        found += detector.update(stream[start : start + 77])
    assert found == whole and len(whole) == 1
    assert len(detector.to_bytes()) < 40_000
