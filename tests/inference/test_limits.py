"""A partition halts when too many rows in a row, or too large a share of the newest, cannot be served."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inference.limits import NO_TALLY, Part, Tally, advance, decode_tally, encode_tally
from schemas.spec import DeadLetters

LIMITS = DeadLetters(halt_after_consecutive=5, halt_ratio=0.5, halt_window_rows=20)


def positions(*which: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(which, np.int64)


def test_a_run_goes_on_from_one_slice_into_the_next() -> None:
    tally, why = advance(NO_TALLY, 10, positions(7, 8, 9), LIMITS)
    assert (tally.run, why) == (3, "")
    tally, why = advance(tally, 3, positions(0), LIMITS)
    assert (tally.run, why) == (0, "")
    _, why = advance(Tally(3), 10, positions(0, 1), LIMITS)
    assert "5 rows in a row" in why


def test_a_run_inside_a_slice_counts_too() -> None:
    assert advance(NO_TALLY, 100, positions(3, *range(40, 45), 99), LIMITS)[1].startswith("5 rows in a row")
    assert advance(NO_TALLY, 100, positions(3, *range(40, 44), 99), LIMITS)[1] == ""


def test_the_share_is_judged_only_over_a_full_window() -> None:
    every_second = positions(*range(0, 19, 2))
    assert advance(NO_TALLY, 19, every_second, LIMITS)[1] == ""
    assert "halt_ratio" in advance(NO_TALLY, 21, positions(*range(0, 21, 2)), LIMITS)[1]


def test_old_rows_leave_the_window() -> None:
    tally, _ = advance(NO_TALLY, 20, positions(*range(0, 20, 2)), LIMITS)
    tally, _ = advance(tally, 20, positions(), LIMITS)
    assert (tally.rows, tally.rejected) == (20, 0)


def test_limits_can_be_switched_off() -> None:
    off = DeadLetters(halt_after_consecutive=0, halt_ratio=1.0, halt_window_rows=20)
    assert advance(NO_TALLY, 1000, np.arange(1000), off)[1] == ""


def test_what_was_within_the_limits_stays_within_them_after_a_restart_with_good_rows() -> None:
    tally, why = advance(NO_TALLY, 20, positions(*range(0, 20, 2)), LIMITS)
    assert why == ""
    again = decode_tally(encode_tally(tally))
    assert (again.run, again.rows, again.rejected) == (tally.run, tally.rows, tally.rejected)
    assert advance(again, 1, positions(), LIMITS)[1] == ""


def test_metadata_that_is_no_tally_is_none() -> None:
    assert decode_tally("x") == decode_tally("1/2") == decode_tally("-1/2/3") == NO_TALLY


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=30))
def test_any_cut_counts_the_same_runs(slices: list[list[bool]]) -> None:
    limits = DeadLetters(halt_after_consecutive=4, halt_ratio=1.0, halt_window_rows=20)
    flat = "".join("x" if bad else "." for piece in slices for bad in piece)
    tally, crossed = NO_TALLY, False
    for piece in slices:
        tally, why = advance(tally, len(piece), np.flatnonzero(np.array(piece)).astype(np.int64), limits)
        crossed = crossed or bool(why)
    assert crossed == ("xxxx" in flat)
    assert tally.run == len(flat) - len(flat.rstrip("x"))
    assert tally.rows >= min(len(flat), 20)
    assert all(isinstance(part, Part) for part in tally.window)
