"""The worker's state is saved without the offset that it reaches to, which the group is told seldom and apart from it."""

from __future__ import annotations

import time
from typing import Any, Final

from benchmarks.faults.bugs import replace
from streams.worker.app import Worker
from streams.worker.state import SourcePartition

EVERY_SEC: Final = 1.5


def apply() -> None:
    """Commit the offset by a timer, and go on from there, whatever the state holds."""
    committed: dict[tuple[str, int], float] = {}

    async def seldom(self: Any, source: SourcePartition, next_offset: int) -> None:
        place = source.topic, source.partition
        if time.monotonic() >= committed.get(place, 0.0) + EVERY_SEC:
            committed[place] = time.monotonic()
            await commit(self, source, next_offset)

    def opened(self: SourcePartition) -> None:
        open_(self)
        self.next_offset = self.saved_offset = 0

    commit = replace(Worker, "_commit", seldom)
    open_ = replace(SourcePartition, "open", opened)
