"""Each try of an insert has a token of its own, so ClickHouse takes the second for another one. Two guards are gone: nobody counts either."""

from __future__ import annotations

import uuid

from benchmarks.faults.bugs import replace, uncounted
from streams.sink.ranges import Range


def apply() -> None:
    """A new token whenever one is asked for."""
    uncounted.apply()
    replace(Range, "token", property(lambda _self: str(uuid.uuid4())))
