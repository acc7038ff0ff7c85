"""The worker's state is saved without the offset that it reaches to, which the group is told seldom and apart from it."""

from __future__ import annotations

import time
from typing import Any, Final

from faust.types import TP

from benchmarks.faults.bugs import replace
from streams.worker.app import Worker
from streams.worker.state import SourcePartition

EVERY_SEC: Final = 1.5


def apply() -> None:
    """Commit the offset by a timer, and go on from there, whatever the state holds."""
    committed: dict[tuple[str, int], float] = {}

    async def save(self: Any, source: SourcePartition) -> None:
        drained = source.drain()
        if drained is None:
            return
        await self._in_thread(source.write, drained)
        place = source.topic, source.partition
        if time.monotonic() >= committed.get(place, 0.0) + EVERY_SEC:
            committed[place] = time.monotonic()
            await self._app.consumer._commit({TP(*place): drained.next_offset})

    def opened(self: SourcePartition) -> None:
        original(self)
        self.next_offset = self.saved_offset = 0

    replace(Worker, "_save", save)
    original = replace(SourcePartition, "open", opened)
