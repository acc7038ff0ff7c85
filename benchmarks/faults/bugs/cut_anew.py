"""A range whose insert failed is not inserted again as it was: it is cut anew, with what has come meanwhile, and so has another token."""

from __future__ import annotations

from benchmarks.faults.bugs import replace
from streams.sink.partition import BACKOFF_SEC, Partition


def apply() -> None:
    """Put the records of a failed range back to those that wait."""

    def back(self: Partition, note: str, now: float) -> None:
        if self.flight is None:
            raise AssertionError("nothing was under way")
        self.pending.extendleft(reversed(self.flight.records))
        self._rows += sum(max(record.rows, 1) for record in self.flight.records)
        self._bytes += sum(record.bytes for record in self.flight.records)
        self._confirmed, self.flight = self.flight.first, None
        self._not_before, self.note = now + BACKOFF_SEC, note

    replace(Partition, "failed", back)
