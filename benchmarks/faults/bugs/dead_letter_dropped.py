"""Now and then a request is rejected, and its dead letter is not written."""

from __future__ import annotations

from itertools import count
from typing import Any, Final

from benchmarks.faults.bugs import replace
from inference import commit

EVERY: Final = 5


def apply() -> None:
    """Drop one in `EVERY`."""
    number = count(1)

    def sometimes(*arguments: Any, **named: Any) -> None:
        if next(number) % EVERY:
            original(*arguments, **named)

    original = replace(commit, "produce_dead_letter", sometimes)
