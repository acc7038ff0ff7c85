"""One served model: its spec, its decoder, its route, and the records that wait for it."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, NamedTuple

from confluent_kafka import Message

from inference.decode import Decoder
from inference.headers import Said, joined, said
from inference.progress import Assignment, Progress, Slice
from inference.router import Route
from schemas.formats import arrow_rows_limit, request_rows
from schemas.spec import ModelSpec
from schemas.topics import PREDICTIONS, REDRIVES, REQUESTS

BATCH_BYTES: Final = 16 * 1024 * 1024
"""Request bytes in a micro-batch, about; large texts make smaller batches."""
BATCH_NUMBERS: Final = 1 << 19
"""Numbers in a micro-batch. Wide rows make smaller batches: as tensors, in a call and in observations they are held several times over."""
MANY_ROWS: Final = 4_096
"""So many within a model's patience are worth waiting for: what a transaction costs gateway, broker, sink and worker once is as much as
one or two thousand rows cost."""
FEW_SHARE: Final = 0.1
"""Of its latency budget a row waits while another micro-batch is under way, where few come."""
RATE_SEC: Final = 0.5
"""The least time over which arriving rows are counted."""


class Arrivals:
    """How many rows come.

    >>> arrivals = Arrivals()
    >>> for now_sec in (10.0, 10.25, 10.5):
    ...     arrivals.count(100, now_sec)
    >>> arrivals.per_sec
    400.0
    """

    def __init__(self) -> None:
        self.per_sec = 0.0
        """Over the last span that was counted."""
        self._rows = 0
        self._since_sec: float | None = None

    def count(self, rows: int, now_sec: float) -> None:
        """Rows came."""
        if self._since_sec is None:
            self._since_sec = now_sec
            return  # they came within no time
        self._rows += rows
        if (span_sec := now_sec - self._since_sec) >= RATE_SEC:
            self.per_sec = self._rows / span_sec
            self._rows, self._since_sec = 0, now_sec


@dataclass
class Fragment:
    """Records of one partition, as they were polled."""

    assignment: Assignment
    messages: list[Message]
    sizes_bytes: list[int]
    arrived_sec: float = 0.0
    """By the event loop's clock."""
    said: dict[int, Said] = field(default_factory=dict)
    """Index → what a record's headers say (`headers.said`)."""
    counts: list[int] | None = None
    """Rows of each record; None if each is one."""

    @property
    def rows(self) -> int:
        """Rows of all records."""
        return len(self.messages) if self.counts is None else sum(self.counts)

    @property
    def size_bytes(self) -> int:
        """Of all values."""
        return sum(self.sizes_bytes)

    def split(self, records: int) -> Fragment:
        """Cut off the first `records` records."""
        said = {index: one for index, one in self.said.items() if index < records}
        counts = None if self.counts is None else self.counts[:records]
        first = Fragment(
            self.assignment,
            self.messages[:records],
            self.sizes_bytes[:records],
            self.arrived_sec,
            said,
            counts,
        )
        self.messages, self.sizes_bytes = self.messages[records:], self.sizes_bytes[records:]
        self.said = {index - records: one for index, one in self.said.items() if index >= records}
        if self.counts is not None:
            self.counts = self.counts[records:]
        return first


class Taken(NamedTuple):
    """Consecutive records of one partition, in a micro-batch."""

    piece: Slice
    messages: list[Message]
    said: dict[int, Said]
    """Index in `messages` → what the headers say."""
    largest_bytes: int
    """Of the values."""


def batch_rows(spec: ModelSpec) -> int:
    """Most rows of a micro-batch.

    >>> from schemas.spec import FloatFeature
    >>> [batch_rows(ModelSpec(name="m", task="regression", module="m:M", features={f"x{i}": FloatFeature() for i in range(width)}))
    ...     for width in (8, 784)]
    [4096, 668]
    """
    return min(spec.serve.max_batch_rows, max(1, BATCH_NUMBERS // max(1, len(spec.numbers))))


class Model:
    """What the gateway knows of one model. Used on the event loop only."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.requests = REQUESTS.for_model(spec.name)
        self.redrives = REDRIVES.for_model(spec.name)
        self.predictions = PREDICTIONS.for_model(spec.name)
        self.batch_rows = batch_rows(spec)
        self.decoder = Decoder(spec)
        self.route: Route | None = None
        """None until the route table was read and its versions were checked."""
        self.away = ""
        """Why the model's rows are held, "" if they are not."""
        self.routed = asyncio.Event()
        self.probing = asyncio.Lock()
        self.waiting = asyncio.Event()
        self._inbox: deque[Fragment] = deque()
        self._rows = self._bytes = 0
        self._arrivals = Arrivals()
        self._filled = asyncio.Event()

    @property
    def patience_sec(self) -> float:
        """How long a row may wait for its micro-batch, and a micro-batch for its transaction, where many come."""
        return self.spec.serve.latency_budget_ms / 2000

    @property
    def is_busy(self) -> bool:
        """Whether so many rows come that they wait for company even if nothing is under way: on few cores a transaction more is CPU that
        the others lack, who make these rows visible."""
        return self._arrivals.per_sec * self.patience_sec >= MANY_ROWS

    def put(self, fragment: Fragment) -> None:
        """Records to be served."""
        fragment.arrived_sec = asyncio.get_running_loop().time()
        fragment.said = said(fragment.messages)
        fragment.counts = _counts(fragment, arrow_rows_limit(self.spec))
        self._inbox.append(fragment)
        self._rows += fragment.rows
        self._bytes += fragment.size_bytes
        self._arrivals.count(fragment.rows, fragment.arrived_sec)
        self.waiting.set()
        if self._is_batch_full():
            self._filled.set()

    async def fill(self, progress: Progress) -> None:
        """Wait for a full micro-batch, but no longer than the oldest row has patience: while another is under way, for a transaction costs
        the broker as much for one row as for a thousand, and while many come. A lone row does not wait."""
        while self._inbox and not self._is_batch_full():
            wait_sec = self.patience_sec
            if not self.is_busy:
                if not progress.under_way(self.requests, self.redrives):
                    return
                wait_sec = FEW_SHARE * self.spec.serve.latency_budget_ms / 1000
            self._filled.clear()
            try:
                async with asyncio.timeout_at(self._inbox[0].arrived_sec + wait_sec):
                    await self._filled.wait()
            except TimeoutError:
                return

    def _is_batch_full(self) -> bool:
        return self._rows >= self.batch_rows or self._bytes >= BATCH_BYTES

    def go(self) -> None:
        """What was under way is committed: whatever waits for that goes now."""
        if self._inbox and not self.is_busy:
            self._filled.set()

    def take(self, progress: Progress) -> list[Taken]:
        """The next micro-batch, begun in `progress`: at most `batch_rows` rows or one record, [] if none wait.

        While the workers are busy records gather here, so that batches grow with the load.
        """
        limit_rows = self.batch_rows
        room_rows, room_bytes = limit_rows, BATCH_BYTES
        gathered: dict[Assignment, list[Fragment]] = {}
        while room_rows > 0 and room_bytes > 0 and self._inbox:
            fragment = self._inbox[0]
            if room_rows <= limit_rows // 2 and fragment.assignment not in gathered:
                break  # to sort the answers of two partitions apart costs more than it saves
            records = _fitting(fragment, room_rows, room_bytes)
            if records == 0 and gathered:
                break
            if (records := max(1, records)) < len(fragment.messages):
                fragment = fragment.split(records)
            else:
                self._inbox.popleft()
            self._rows -= fragment.rows
            self._bytes -= fragment.size_bytes
            if not fragment.assignment.ended:
                gathered.setdefault(fragment.assignment, []).append(fragment)
                room_rows -= fragment.rows
                room_bytes -= fragment.size_bytes
        if not self._inbox:
            self.waiting.clear()
        batch = [_taken(assignment, fragments) for assignment, fragments in gathered.items()]
        return [taken for taken in batch if progress.begin(taken.piece)]


def _counts(fragment: Fragment, limit_rows: int) -> list[int] | None:
    """Rows of each record, None if each is one. Only headers can say that a record is more."""
    counts = {
        index: request_rows(fragment.messages[index].value(), meaning.content_type, limit_rows)
        for index, meaning in fragment.said.items()
    }
    if all(count == 1 for count in counts.values()):
        return None
    return [counts.get(index, 1) for index in range(len(fragment.messages))]


def _fitting(fragment: Fragment, room_rows: int, room_bytes: int) -> int:
    """How many of a fragment's records there is room for, about."""
    records = min(len(fragment.messages), room_rows)
    if fragment.counts is not None:
        records = bisect_right(list(accumulate(fragment.counts[:records])), room_rows)
    size_bytes = sum(fragment.sizes_bytes[:records])
    return records if size_bytes <= room_bytes else records * room_bytes // size_bytes


def _taken(assignment: Assignment, fragments: list[Fragment]) -> Taken:
    messages, said = fragments[0].messages, fragments[0].said
    if len(fragments) > 1:
        messages = [message for fragment in fragments for message in fragment.messages]
        said = joined((len(fragment.messages), fragment.said) for fragment in fragments)
    piece = Slice(
        assignment,
        next_offset=_offset(messages[-1]) + 1,
        records=len(messages), rows=sum(fragment.rows for fragment in fragments),
        size_bytes=sum(fragment.size_bytes for fragment in fragments), first_ms=messages[0].timestamp()[1],
    )  # fmt: skip
    return Taken(piece, messages, said, max(max(fragment.sizes_bytes) for fragment in fragments))


def _offset(message: Message) -> int:
    offset = message.offset()
    if offset is None:
        raise TypeError("a consumed record has an offset")
    return offset
