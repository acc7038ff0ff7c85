"""Slices are committed as they come back, whether or not those before them have: their offset covers what is still under way."""

from __future__ import annotations

from benchmarks.faults.bugs import replace
from inference.progress import Progress, Slice


def apply() -> None:
    """Choose every completed slice, and forget those that were chosen."""

    def completed(self: Progress, limit_rows: int) -> list[Slice]:
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

    replace(Progress, "completed", completed)
    original = replace(Progress, "confirm", confirm)
