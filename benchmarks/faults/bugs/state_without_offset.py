"""The worker's state is saved without the offset that it reaches to, which the group is told seldom and apart from it."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from benchmarks.faults.bugs import replace
from streams.worker.app import Worker
from streams.worker.state import SourcePartition

EVERY_SEC: Final = 1.5


def apply() -> None:
    """Commit the offset by a timer, and go on from there, whatever the state holds."""
    committed: dict[tuple[str, int], float] = {}

    async def save(self: Any, place: tuple[str, int]) -> None:
        async with self._saves.setdefault(place, asyncio.Lock()):
            source = self.sources.get(place)
            drained = None if source is None else source.drain()
            if source is None or drained is None:
                return
            await self._in_thread(source.write, drained)
            if time.monotonic() >= committed.get(place, 0.0) + EVERY_SEC:
                committed[place] = time.monotonic()
                await self._commit(source, drained.next_offset)

    def opened(self: SourcePartition) -> None:
        original(self)
        self.next_offset = self.saved_offset = 0

    replace(Worker, "_save", save)
    original = replace(SourcePartition, "open", opened)
