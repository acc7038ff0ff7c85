"""The sink commits where it stands and no plan: a successor cuts other ranges, finds no token of theirs, and does not count."""

from __future__ import annotations

from typing import Any

from benchmarks.faults.bugs import replace
from streams.sink import loop
from streams.sink.plan import Plan


def apply() -> None:
    """Write down an empty plan."""

    def without(partition: Any, offset: int, plan: Plan) -> Any:
        return original(partition, offset, Plan(topic_id=plan.topic_id, end=offset, rows=0))

    original = replace(loop, "_committed", without)
