"""Slices are committed as they come back, whether or not those before them have: their offset covers what is still under way.

Micro-batches come back in order where none is slower than the next: now and then a call takes long, which is no fault.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any, Final

from benchmarks.faults.bugs import replace
from inference.progress import Progress, Slice
from inference.triton import Triton

EVERY: Final = 20
SLOW_SEC: Final = 0.5


def apply() -> None:
    """Choose every completed slice, and forget those that were chosen."""

    def completed(self: Progress, limit_rows: int, _limit_bytes: int) -> list[Slice]:
        with self._lock:
            every = [piece for each in self._assignments.values() for piece in each.pending]
        found: list[Slice] = []
        for piece in every:
            if piece.output is not None and sum(each.rows for each in found) < limit_rows:
                found.append(piece)
        return found

    def confirm(self: Progress, slices: list[Slice]) -> None:
        for piece in slices:
            pending = piece.assignment.pending
            if piece in pending:
                pending.remove(piece)
                pending.appendleft(piece)
                original(self, [piece])

    async def now_and_then_slow(self: Triton, *arguments: Any, **named: Any) -> Any:
        if next(number) % EVERY == 0:
            await asyncio.sleep(SLOW_SEC)
        return await infer(self, *arguments, **named)

    number = count(1)
    infer = replace(Triton, "infer", now_and_then_slow)
    replace(Progress, "completed", completed)
    original = replace(Progress, "confirm", confirm)
