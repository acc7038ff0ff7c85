"""A halt is told once, under an id that a successor repeats, and tried again when the route changes or it is time."""

from __future__ import annotations

import uuid
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa

from inference.halts import RETRY_SEC, Halts
from inference.progress import Assignment, Observed, Output, Slice
from inference.router import Route

TOPIC_ID = uuid.UUID(int=3)


class Clock:
    def __init__(self) -> None:
        self.now_sec = 0.0

    def __call__(self) -> float:
        return self.now_sec


def halted(offset: int = 41) -> Slice:
    assignment = Assignment("requests.m", 1, TOPIC_ID, offset, offset)
    assignment.halted = "too many"
    nothing = Observed(pa.record_batch({}), np.zeros(0, np.int64), np.zeros(1, np.int64), [])
    output = Output([], [], {}, nothing, 0, 0, [], Counter({"missing_field": 7}))
    fields: dict[str, Any] = {
        "next_offset": offset + 9,
        "records": 9,
        "rows": 9,
        "size_bytes": 90,
        "first_ms": 5,
    }
    return Slice(assignment, output=output, **fields)


def halts() -> tuple[Halts, Any, Clock]:
    model = SimpleNamespace(spec=SimpleNamespace(name="m"), route=Route("m", 1))
    clock = Clock()
    return Halts({"requests.m": cast(Any, model)}, lambda: 1000, clock), model, clock


def test_people_are_told_once_and_a_successor_says_the_same() -> None:
    mine, *_ = halts()
    alert = mine.halted(halted())
    assert alert is not None
    assert (alert.subject, alert.evidence["committed_offset"], alert.evidence["reasons"]) == (
        "requests.m:1",
        41,
        {"missing_field": 7},
    )
    assert mine.halted(halted()) == alert, "not told yet: the transaction was lost"
    mine.told(alert)
    assert mine.halted(halted()) is None
    assert mine.halted(halted(50)) is not None
    successor, *_ = halts()
    repeated = successor.halted(halted())
    assert repeated is not None
    assert repeated.event_id == alert.event_id


def test_it_is_tried_again_when_the_route_changes_and_now_and_then() -> None:
    mine, model, clock = halts()
    piece = halted()
    mine.halted(piece)
    assert mine.due([piece.assignment]) == []
    clock.now_sec = RETRY_SEC
    assert mine.due([piece.assignment]) == [piece.assignment]
    mine.halted(piece)
    assert mine.due([piece.assignment]) == []
    model.route = Route("m", 2)
    assert mine.due([piece.assignment]) == [piece.assignment]
    piece.assignment.halted = ""
    assert mine.due([piece.assignment]) == []
