"""The life of one partition, without I/O: what was consumed, what is under way, what may be committed. Time is passed in.

consumed → pending → (cut) planned → inserting → confirmed
                                        ↘ paused: ClickHouse is away, the same range again later
                                        ↘ halted: a person is needed; nothing more happens until it is begun anew
"""

from __future__ import annotations

from collections import deque
from typing import Final

from schemas.spec import ModelSpec
from streams.sink.plan import Plan
from streams.sink.ranges import LIMITS, Limits, Range, Record, cut
from streams.sink.tables import Source, Table

LINGER_SEC: Final = 0.02
"""After a quiet time a range waits this long for company."""
PACE_PER_INSERT: Final = 1.0
"""Ranges of one partition follow each other no faster than this many times the last insert took, so that inserting leaves the engine
time for its readers,"""
MAX_PACE_SEC: Final = 1.0
"""… up to this."""
CONFIRM_SEC: Final = 0.5
"""Quiet time after which the last range is confirmed by an empty plan."""
TRUNCATED_SEC: Final = 30.0
"""A broker that has just come back may for a moment show less than it has; after this it has lost the planned range."""
WAITING_SEC: Final = 2.0
"""A range that is under way for longer may be for long: what follows it stays in Kafka meanwhile, not in memory."""
BACKOFF_SEC: Final = 0.2
MAX_BACKOFF_SEC: Final = 2.0
"""ClickHouse that is back is found this late at most: labels wait for what a partition holds up."""


class Partition:
    """One assigned partition."""

    def __init__(
        self,
        topic: str,
        number: int,
        table: Table,
        source: Source,
        start: int | None,
        plan: Plan | None,
        limits: Limits = LIMITS,
    ) -> None:
        """`start` is the group's committed offset, None if it never committed; `plan` the plan committed with it."""
        self.topic, self.number, self.table, self.source = topic, number, table, source
        self.pending: deque[Record] = deque()
        self.flight: Range | None = None
        self.retrying = False
        """The flight was tried before, by us or by a predecessor: ClickHouse may have it."""
        self.halted = ""
        """Why, "" if it is not."""
        self.note = ""
        self._limits = limits
        self._confirmed = start
        self._committed = start
        self._recovering = plan if plan is not None and start is not None and plan.end > start else None
        self._position = start or 0
        self._end_seen = -1
        self._end_seen_at = 0.0
        self._poison = ""
        self._first_at = 0.0
        self._quiet_since = 0.0
        self._not_before = 0.0
        self._launched_at = 0.0
        self._backoff_sec = 0.0
        self._rows = self._bytes = 0

    @property
    def model(self) -> str:
        """The topic's model, "" if it belongs to none."""
        spec: ModelSpec | None = self.source.spec
        return spec.name if spec is not None else ""

    @property
    def pending_bytes(self) -> int:
        """Bytes consumed and not yet under way."""
        return self._bytes

    @property
    def full(self) -> bool:
        """Enough is pending for the next range: consume no more."""
        return self._rows >= self._limits.rows or self._bytes >= self._limits.bytes

    @property
    def position(self) -> int:
        """The next offset to be consumed."""
        return self._position

    @property
    def paused(self) -> bool:
        """ClickHouse is away for it."""
        return self._backoff_sec > 0 and not self.halted

    def waiting(self, now: float) -> bool:
        """ClickHouse is away for it, or does not answer: consume no more until what is under way is in."""
        return self.flight is not None and (self.paused or now > self._launched_at + WAITING_SEC)

    def enough(self, now: float, crowded: bool) -> bool:
        """Consume no more for now; `crowded`: much is pending over all partitions."""
        if self.halted:
            return True
        if self._recovering is not None:
            return False  # nothing of a planned range can go before all of it is here
        return self.full or self.waiting(now) or (crowded and bool(self.pending))

    @property
    def settled(self) -> bool:
        """Everything readable is in ClickHouse and confirmed."""
        return self.idle and self._end_seen >= self._position and self.to_confirm is None

    @property
    def idle(self) -> bool:
        """Nothing pending, nothing under way."""
        return not self.pending and self.flight is None

    @property
    def committed(self) -> int:
        """The group's offset, as far as we know it."""
        return self._committed if self._committed is not None else self._position

    @property
    def flight_offsets(self) -> str:
        """First and last offset under way, for people."""
        return f"{self.flight.first}-{self.flight.end - 1}" if self.flight is not None else "none"

    @property
    def oldest_ms(self) -> int | None:
        """Timestamp of the oldest record that is consumed and not yet in ClickHouse."""
        records = self.flight.records if self.flight is not None else self.pending
        return records[0].timestamp_ms if records else None

    @property
    def to_confirm(self) -> int | None:
        """The offset to commit with an empty plan, None if the group has it."""
        if self._confirmed is None or self.flight is not None or self._recovering is not None or self.halted:
            return None
        return self._confirmed if self._committed is None or self._confirmed > self._committed else None

    # ── what the consumer says ──

    def wants(self, offset: int) -> bool:
        """Whether the record at `offset` is the next one; after a pause a client may repeat some."""
        return offset >= self._position and not self._poison and not self.halted

    def take(self, record: Record, now: float) -> None:
        """A consumed record."""
        if not self.pending:
            self._first_at = now
        self.pending.append(record)
        self._rows += max(record.rows, 1)
        self._bytes += record.bytes
        self._position = record.offset + 1

    def end(self, offset: int, now: float) -> None:
        """Every record below `offset` has been taken and there is none after it yet. Transaction markers leave the offset higher than
        the last record's."""
        self._end_seen = self._position = max(offset, self._position)
        self._end_seen_at = now
        self._settle(now)

    def poison(self, offset: int, reason: str) -> None:
        """The record at `offset` can never be inserted: what is before it still will be, then the partition halts."""
        self._poison = f"offset {offset}: {reason}"

    # ── what to do ──

    def due(self, now: float) -> Range | None:
        """The next range, if it is time. `launch` it when its plan is committed (a recovered one's already is)."""
        if self.flight is not None or self.halted:
            return None
        if self._recovering is not None:
            return self._recovered(self._recovering, now)
        if not self.pending:
            if self._poison:
                self.halt(self._poison)
            return None
        if not (self.full or self._poison) and now < max(self._not_before, self._first_at + LINGER_SEC):
            return None
        return self._range(cut(self.pending, self._limits))

    @property
    def recovering(self) -> bool:
        """The next range is a predecessor's."""
        return self._recovering is not None

    def launch(self, range_: Range, now: float) -> None:
        """`range_` is planned and goes under way."""
        for _ in range_.records:
            record = self.pending.popleft()
            self._rows -= max(record.rows, 1)
            self._bytes -= record.bytes
        self._first_at = self._launched_at = now
        if range_.rows:
            self._committed = range_.first
        self.retrying = self._recovering is not None
        self._recovering = None
        self.flight = range_

    def inserted(self, took_sec: float, now: float) -> None:
        """The flight is in ClickHouse."""
        if self.flight is None:
            raise AssertionError("nothing was under way")
        self._confirmed = self.flight.end
        self.flight = None
        self._backoff_sec, self.note = 0.0, ""
        pace = min(max(self.table.pace_sec, PACE_PER_INSERT * took_sec), MAX_PACE_SEC)
        self._not_before = now - took_sec + pace
        self._settle(now)

    def failed(self, note: str, now: float) -> None:
        """ClickHouse is away: the same range again, later."""
        self._backoff_sec = min(max(self._backoff_sec * 2, BACKOFF_SEC), MAX_BACKOFF_SEC)
        self._not_before, self.retrying, self.note = now + self._backoff_sec, True, note

    def retry_due(self, now: float) -> bool:
        """The flight failed and its time has come again."""
        return self.flight is not None and self.paused and now >= self._not_before

    def halt(self, reason: str) -> None:
        """A person is needed. What is pending is dropped: the group's offset and plan say where to go on."""
        self.halted = reason
        self.flight = None
        self.pending.clear()
        self._rows = self._bytes = 0

    def confirm_due(self, now: float) -> int | None:
        """The offset to commit with an empty plan, once it has been quiet for a while."""
        if self.pending or now < self._quiet_since + CONFIRM_SEC:
            return None
        return self.to_confirm

    def confirmed(self, offset: int) -> None:
        """The group has `offset` with an empty plan."""
        self._committed = offset

    def _settle(self, now: float) -> None:
        """With nothing left, the end of the partition is where we are: markers at its end count as consumed."""
        self._quiet_since = now
        if self.idle and self._recovering is None and self._end_seen >= 0:
            self._confirmed = max(self._confirmed or 0, self._end_seen)

    def _recovered(self, plan: Plan, now: float) -> Range | None:
        """Exactly the planned records, once all of them are here."""
        if self._position < plan.end:
            if self._poison:
                self.halt(self._poison)
            elif self._end_seen == self._position and now > self._end_seen_at + TRUNCATED_SEC:
                self.halt(f"Kafka ends at offset {self._end_seen}, the planned range at {plan.end}")
            return None
        records = tuple(record for record in self.pending if record.offset < plan.end)
        first = self._confirmed or 0
        range_ = Range(self.topic, self.source.topic_id, self.number, first, plan.end, records)
        if range_.rows != plan.rows and not self.table.idempotent:
            self.halt(f"offsets {first}-{plan.end - 1} hold {range_.rows} rows, the plan says {plan.rows}")
            return None
        return range_._replace(revised=range_.rows != plan.rows)

    def _range(self, count: int) -> Range:
        records = tuple(self.pending[i] for i in range(count))
        first = self._confirmed if self._confirmed is not None else records[0].offset
        return Range(self.topic, self.source.topic_id, self.number, first, records[-1].offset + 1, records)
