"""The clock of a run."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable

import pytest

from benchmarks import meter
from benchmarks.meter import StageFailed, watch


def shown(*values: int) -> Callable[[], int]:
    """A progress that shows these, then the last for ever."""
    left = itertools.chain(values, itertools.repeat(values[-1]))
    return lambda: next(left)


def test_what_was_out_when_the_clock_started_does_not_count() -> None:
    run = watch(shown(0, 0, 40, 40, 70, 100), 100, {"me": os.getpid()}, rows_per_record=2)
    assert run.rows == 2 * (100 - 40)
    assert run.sec >= 2 * meter.LOOK_EVERY_SEC
    assert set(run.cpu_sec) == {"me"}
    assert run.rss_bytes["me"] > 0


def test_another_gauge_may_start_the_clock() -> None:
    run = watch(shown(0, 0, 30), 30, {}, begun=shown(0, 6))
    assert run.rows == 30


def test_a_clock_that_another_gauge_starts_late_gives_no_figure() -> None:
    with pytest.raises(StageFailed, match="started late, when 21 of 100"):
        watch(shown(0, 0, 100), 100, {}, begun=shown(0, 21))


def test_a_stage_that_does_nothing_or_stops_or_does_too_much_has_no_figure() -> None:
    with pytest.raises(StageFailed, match="nothing was processed within 0 s"):
        watch(shown(0), 10, {}, start_limit_sec=0.05)
    with pytest.raises(StageFailed, match="only 5 of 10"):
        watch(shown(5), 10, {}, limit_sec=0.05)
    with pytest.raises(StageFailed, match="all 10 records were processed before"):
        watch(lambda: 10, 10, {})
    with pytest.raises(StageFailed, match="10 records were there, and 11"):
        watch(shown(1, 1, 11), 10, {})


def test_a_stage_that_is_cut_off_counts_what_it_did() -> None:
    run = watch(shown(1, 1, 6), 1000, {}, limit_sec=0.1)
    assert run.rows == 5
    assert 0.1 <= run.sec < 5


def test_a_process_that_ended_is_said_at_once() -> None:
    def ended() -> None:
        raise StageFailed("gateway ended with 1: KeyError")

    started = time.monotonic()
    with pytest.raises(StageFailed, match="KeyError"):
        watch(shown(0), 10, {}, alive=ended)
    assert time.monotonic() - started < 5
