"""Ranges: the records of one partition that go into ClickHouse as one block."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any, Final, NamedTuple


class Record(NamedTuple):
    """One consumed record, decoded as far as the sink needs it."""

    offset: int
    timestamp_ms: int
    rows: int
    """Rows it becomes; 0 if the sink passes it over (a tombstone, invalid feedback)."""
    bytes: int
    table_partitions: frozenset[int]
    """Partitions of the ClickHouse table that its rows fall into; empty if the table has none."""
    payload: Any
    """What the table's `encode` joins; None if there are no rows."""
    traceparent: str = ""


class Limits(NamedTuple):
    """What one range may hold at most; a single record may exceed it."""

    rows: int = 100_000
    bytes: int = 32 * 1024 * 1024
    table_partitions: int = 1
    """One, because ClickHouse makes one part per partition of a block and commits the parts one by one."""


LIMITS: Final = Limits()


class Range(NamedTuple):
    """Consecutive records of one partition."""

    topic: str
    topic_id: uuid.UUID
    partition: int
    first: int
    """The offset committed with its plan; the first record's is the same or, after a gap, higher."""
    end: int
    """The last record's offset + 1."""
    records: tuple[Record, ...]
    revised: bool = False
    """It makes other rows than its plan said (a spec changed in between): its token must not be taken for the first try's."""

    @property
    def rows(self) -> int:
        """Rows it becomes in ClickHouse."""
        return sum(record.rows for record in self.records)

    @property
    def oldest_ms(self) -> int:
        """Timestamp of its oldest record."""
        return min(record.timestamp_ms for record in self.records)

    @property
    def token(self) -> str:
        """Its deduplication token: a function of the offsets alone, so that a successor makes the same."""
        token = f"{self.topic_id}:{self.partition}:{self.first}-{self.end - 1}"
        return f"{token}/{self.rows}" if self.revised else token


def cut(records: Iterable[Record], limits: Limits) -> int:
    """How many of `records`, from the first, go into one range: as many as the limits allow, at least one if there is one.

    A record without rows counts as one row, so that skipped records are bounded too.
    """
    count = rows = size = 0
    touched: frozenset[int] = frozenset()
    for record in records:
        rows += max(record.rows, 1)
        size += record.bytes
        touched |= record.table_partitions
        if count and (rows > limits.rows or size > limits.bytes or len(touched) > limits.table_partitions):
            break
        count += 1
    return count
