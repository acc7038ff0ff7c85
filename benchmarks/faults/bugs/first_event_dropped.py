"""The first event that a worker is handed of a partition it takes over is dropped, as events are that come while a partition is nobody's.

Two guards are gone: the worker also does not look whether an event lies between the state and the one that it begins with.
"""

from __future__ import annotations

from typing import Any

from benchmarks.faults.bugs import replace
from streams.worker.state import SourcePartition


def apply() -> None:
    """Leave out the first event after a state that was found."""
    begun: set[SourcePartition] = set()

    def nothing_passed_over(_self: SourcePartition, _offset: int) -> bool:
        return False

    def dropping(self: SourcePartition, offset: int, value: bytes) -> None:
        if offset >= self.next_offset and self not in begun:
            begun.add(self)
            return
        original(self, offset, value)

    def opened(self: Any) -> None:
        open_(self)
        if not self.next_offset:
            begun.add(self)  # there was no state: nobody had it before

    replace(SourcePartition, "passes_over", nothing_passed_over)
    original = replace(SourcePartition, "apply", dropping)
    open_ = replace(SourcePartition, "open", opened)
