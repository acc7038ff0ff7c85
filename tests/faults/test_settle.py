"""Whoever waits for the last effects goes on as soon as they are there, and gives up when nothing moves any more."""

from collections.abc import Iterator

from benchmarks.faults.settle import settled

NEVER_SEC = 3600.0


def ends(*numbers: int) -> Iterator[int]:
    """The numbers, and the last one for ever."""
    yield from numbers
    while True:
        yield numbers[-1]


def test_what_is_done_is_not_waited_for() -> None:
    found = ends(3, 2, 0)
    assert settled(lambda: next(found), lambda left: not left, NEVER_SEC, NEVER_SEC) == 0


def test_what_stands_still_is_given_up_and_what_moves_is_not() -> None:
    found = ends(5, 4, 3, 2, 1)
    assert settled(lambda: next(found), lambda left: not left, NEVER_SEC, still_sec=0.7) == 1


def test_nothing_is_waited_for_longer_than_its_deadline() -> None:
    count = iter(range(1, 1000))
    assert settled(lambda: next(count), lambda left: not left, deadline_sec=0.0, still_sec=NEVER_SEC) <= 2
