"""What was polled, what is done, and what of it may be committed: a contiguous completed prefix per partition.

An `Assignment` is one ownership of one partition: its identity is the epoch. A result that comes back after its assignment
ended (revoked, or rewound after a lost transaction) finds it ended and is dropped.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from confluent_kafka import Message
from numpy.typing import NDArray

from inference.limits import NO_POSITIONS, NO_TALLY, Tally
from runtime.headers import Headers
from runtime.positions import Place
from schemas.dead_letters import Origin
from schemas.errors import Rejection


@dataclass(eq=False)
class Assignment:
    """One ownership of one partition, from being assigned until it is revoked or rewound."""

    topic: str
    partition: int
    topic_id: uuid.UUID
    position: int
    """Next offset to be polled."""
    committed: int
    """Next offset of the group, as far as this process knows."""
    pending: deque[Slice] = field(default_factory=deque)
    held_records: int = 0
    """Polled and not yet committed."""
    held_bytes: int = 0
    oldest_ms: int | None = None
    """Timestamp of the first record that was polled and not committed."""
    tally: Tally = NO_TALLY
    """Of what is committed."""
    halted: str = ""
    """Why nothing more is committed or read, "" if it goes on."""
    ended: bool = False


class DeadLetter(NamedTuple):
    """A record that will never be served."""

    message: Message
    rejection: Rejection
    origin: Origin | None = None
    """What it was, if it is a redriven record."""


@dataclass(frozen=True, eq=False)
class Observed:
    """What was observed of a micro-batch, in which each of its slices has a share."""

    batch: pa.RecordBatch
    row_of: NDArray[np.int64]
    """The row that each of its rows is of: several arms may say something of one."""
    bounds: NDArray[np.int64]
    """The first row of each slice, and the end of the last."""
    headers: Headers


@dataclass(frozen=True, eq=False)
class Output:
    """Everything that a slice leaves behind, in the order of its offsets."""

    predictions: list[bytes]
    """Values, one for each record."""
    keys: list[bytes | None]
    headers: dict[int, Headers]
    """Of the predictions that have any."""
    observed: Observed
    place: int
    """Which slice of the micro-batch it is."""
    observed_bytes: int
    """About what its share in `observed` takes."""
    dead_letters: list[DeadLetter]
    reasons: Counter[str]
    """Rejected rows by reason."""
    rejected: NDArray[np.int64] = field(default_factory=lambda: NO_POSITIONS)
    """Positions of the rejected rows that count for the limits, ascending."""

    @cached_property
    def size_bytes(self) -> int:
        """Of predictions and observations."""
        return sum(map(len, self.predictions)) + self.observed_bytes


@dataclass(eq=False)
class Slice:
    """Consecutive records of one partition that one micro-batch holds."""

    assignment: Assignment
    next_offset: int
    records: int
    rows: int
    size_bytes: int
    first_ms: int
    output: Output | None = None
    tally: Tally = NO_TALLY
    """The partition's, with this slice; known once it was chosen to be committed."""


class Progress:
    """The assignments of this process. Safe to use from the event loop, the consumer's and the committer's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._assignments: dict[Place, Assignment] = {}
        self._ready_rows = self._ready_bytes = 0

    def assign(self, assignment: Assignment) -> None:
        """Begin an ownership; one that was there ends."""
        with self._lock:
            self._end(assignment.topic, assignment.partition)
            self._assignments[assignment.topic, assignment.partition] = assignment

    def revoke(self, topic: str, partition: int) -> None:
        """End an ownership: nothing of it will be committed by this process any more."""
        with self._lock:
            self._end(topic, partition)

    def _end(self, topic: str, partition: int) -> None:
        ended = self._assignments.pop((topic, partition), None)
        if ended is not None:
            ended.ended = True
            for piece in ended.pending:
                self._unready(piece)
            ended.pending.clear()

    def _unready(self, piece: Slice) -> None:
        if piece.output is not None:
            self._ready_rows -= piece.rows
            self._ready_bytes -= piece.output.size_bytes

    def polled(
        self, assignment: Assignment, next_offset: int, records: int, size_bytes: int, first_ms: int
    ) -> None:
        """Records were polled and are held in memory from now on."""
        with self._lock:
            assignment.position = next_offset
            assignment.held_records += records
            assignment.held_bytes += size_bytes
            if assignment.oldest_ms is None:
                assignment.oldest_ms = first_ms

    def begin(self, piece: Slice) -> bool:
        """A slice goes on its way; slices of a partition begin in the order of their offsets. False: nobody wants it any more."""
        with self._lock:
            if piece.assignment.ended:
                return False
            piece.assignment.pending.append(piece)
            return True

    def complete(self, piece: Slice, output: Output) -> None:
        """What a slice came to. Dropped if its assignment has ended."""
        with self._lock:
            if not piece.assignment.ended:
                piece.output = output
                self._ready_rows += piece.rows
                self._ready_bytes += output.size_bytes

    @property
    def ready(self) -> tuple[int, int]:
        """(rows, bytes of their outputs) that are complete, whether or not those before them are."""
        return self._ready_rows, self._ready_bytes

    def completed(self, limit_rows: int, limit_bytes: int) -> list[Slice]:
        """Per partition the completed slices with none missing before them, in order; about `limit_rows` rows or `limit_bytes` of outputs
        in all, at least one slice."""
        found: list[Slice] = []
        rows = size_bytes = 0
        with self._lock:
            for assignment in self._assignments.values():
                for piece in assignment.pending:
                    if assignment.halted or piece.output is None:
                        break
                    if rows >= limit_rows or size_bytes >= limit_bytes:
                        break
                    found.append(piece)
                    rows += piece.rows
                    size_bytes += piece.output.size_bytes
        return found

    def confirm(self, slices: list[Slice]) -> None:
        """`slices`, as `completed` gave them, are committed: forget them."""
        with self._lock:
            for piece in slices:
                assignment = piece.assignment
                if assignment.ended:
                    continue
                assignment.pending.popleft()
                assignment.committed = piece.next_offset
                assignment.tally = piece.tally
                assignment.held_records -= piece.records
                assignment.held_bytes -= piece.size_bytes
                self._unready(piece)
                following = assignment.pending[0].first_ms if assignment.pending else None
                assignment.oldest_ms = following if assignment.held_records else None

    def of(self, topic: str, partition: int) -> Assignment | None:
        """The present ownership of a partition."""
        return self._assignments.get((topic, partition))

    def assignments(self) -> list[Assignment]:
        """All present ownerships."""
        with self._lock:
            return list(self._assignments.values())

    def under_way(self, *topics: str) -> bool:
        """Whether a slice of `topics` was begun and is not committed."""
        with self._lock:
            return any(a.pending for (name, _), a in self._assignments.items() if name in topics)

    def held(self, *topics: str) -> tuple[int, int]:
        """(records, bytes) of `topics` in memory."""
        with self._lock:
            mine = [assignment for (name, _), assignment in self._assignments.items() if name in topics]
        return sum(a.held_records for a in mine), sum(a.held_bytes for a in mine)
