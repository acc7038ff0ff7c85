"""The sink commits the end of a range before it inserts it: who dies in between has lost it."""

from __future__ import annotations

from typing import Any

from benchmarks.faults.bugs import replace
from streams.sink import loop
from streams.sink.plan import Plan


def apply() -> None:
    """Commit the end instead of the beginning, and nothing to recover."""

    def ahead(partition: Any, _offset: int, plan: Plan) -> Any:
        return original(partition, plan.end, Plan(topic_id=plan.topic_id, end=plan.end, rows=0))

    original = replace(loop, "_committed", ahead)
