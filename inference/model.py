"""One served model: its spec, its decoder, its route, and the records that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from confluent_kafka import Message

from inference.decode import Decoder
from inference.headers import said
from inference.progress import Assignment, Progress, Slice
from inference.router import Route
from schemas.formats import arrow_rows_limit, request_rows
from schemas.spec import ModelSpec
from schemas.topics import PREDICTIONS, REDRIVES, REQUESTS

BATCH_BYTES: Final = 16 * 1024 * 1024
"""Request bytes in a micro-batch, about; large texts make smaller batches."""


@dataclass
class Fragment:
    """Records of one partition, as they were polled."""

    assignment: Assignment
    messages: list[Message]
    sizes_bytes: list[int]
    counts: list[int] | None = None
    """Rows of each record; None if each is one."""

    @property
    def rows(self) -> int:
        """Rows of all records."""
        return len(self.messages) if self.counts is None else sum(self.counts)

    def split(self, records: int) -> Fragment:
        """Cut off the first `records` records."""
        counts, rest = (None, None) if self.counts is None else (self.counts[:records], self.counts[records:])
        first = Fragment(self.assignment, self.messages[:records], self.sizes_bytes[:records], counts)
        self.messages, self.sizes_bytes, self.counts = (
            self.messages[records:],
            self.sizes_bytes[records:],
            rest,
        )
        return first


class Model:
    """What the gateway knows of one model. Used on the event loop only."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.requests = REQUESTS.for_model(spec.name)
        self.redrives = REDRIVES.for_model(spec.name)
        self.predictions = PREDICTIONS.for_model(spec.name)
        self.decoder = Decoder(spec)
        self.route: Route | None = None
        """None until the route table was read and its versions were checked."""
        self.away = ""
        """Why the model's rows are held, "" if they are not."""
        self.routed = asyncio.Event()
        self.probing = asyncio.Lock()
        self.waiting = asyncio.Event()
        self._inbox: deque[Fragment] = deque()
        self._rows = 0
        self._oldest_sec = 0.0
        self._filled = asyncio.Event()

    def put(self, fragment: Fragment) -> None:
        """Records to be served."""
        if not self._inbox:
            self._oldest_sec = asyncio.get_running_loop().time()
        fragment.counts = _counts(fragment.messages, arrow_rows_limit(self.spec))
        self._inbox.append(fragment)
        self._rows += fragment.rows
        self.waiting.set()
        if self._rows >= self.spec.serve.max_batch_rows:
            self._filled.set()

    async def fill(self, progress: Progress) -> None:
        """While a micro-batch is under way, wait for a full one or for `go`, but no longer than the oldest row's `latency_budget_ms`: a
        transaction costs the broker as much for one row as for a thousand. A lone row does not wait."""
        if not progress.under_way(self.requests, self.redrives):
            return
        due = self._oldest_sec + self.spec.serve.latency_budget_ms / 1000
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._filled.wait()

    def go(self) -> None:
        """What was under way is committed: whatever waits for company goes now."""
        if self._inbox:
            self._filled.set()

    def take(self, progress: Progress) -> list[tuple[Slice, list[Message]]]:
        """The next micro-batch, begun in `progress`: at most `max_batch_rows` rows or one record, [] if none wait.

        While the workers are busy records gather here, so that batches grow with the load.
        """
        room_rows, room_bytes = self.spec.serve.max_batch_rows, BATCH_BYTES
        gathered: dict[Assignment, list[Fragment]] = {}
        while room_rows > 0 and room_bytes > 0 and self._inbox:
            fragment = self._inbox[0]
            records = _fitting(fragment, room_rows, room_bytes)
            if records == 0 and gathered:
                break
            if (records := max(1, records)) < len(fragment.messages):
                fragment = fragment.split(records)
            else:
                self._inbox.popleft()
            self._rows -= fragment.rows
            if not fragment.assignment.ended:
                gathered.setdefault(fragment.assignment, []).append(fragment)
                room_rows -= fragment.rows
                room_bytes -= sum(fragment.sizes_bytes)
        if not self._inbox:
            self.waiting.clear()
        if self._rows < self.spec.serve.max_batch_rows:
            self._filled.clear()
        batch = [_slice(assignment, fragments) for assignment, fragments in gathered.items()]
        return [(piece, messages) for piece, messages in batch if progress.begin(piece)]


def _counts(messages: list[Message], limit_rows: int) -> list[int] | None:
    counts = [1] * len(messages)
    for index, meaning in said(messages).items():
        counts[index] = request_rows(messages[index].value(), meaning.content_type, limit_rows)
    return counts if any(count != 1 for count in counts) else None


def _fitting(fragment: Fragment, room_rows: int, room_bytes: int) -> int:
    """How many of a fragment's records there is room for, about."""
    records = min(len(fragment.messages), room_rows)
    if fragment.counts is not None:
        records = bisect_right(list(accumulate(fragment.counts[:records])), room_rows)
    size_bytes = sum(fragment.sizes_bytes[:records])
    return records if size_bytes <= room_bytes else records * room_bytes // size_bytes


def _slice(assignment: Assignment, fragments: list[Fragment]) -> tuple[Slice, list[Message]]:
    messages = fragments[0].messages
    if len(fragments) > 1:
        messages = [message for fragment in fragments for message in fragment.messages]
    piece = Slice(
        assignment,
        first_offset=_offset(messages[0]), next_offset=_offset(messages[-1]) + 1,
        records=len(messages), rows=sum(fragment.rows for fragment in fragments),
        size_bytes=sum(sum(fragment.sizes_bytes) for fragment in fragments), first_ms=messages[0].timestamp()[1],
    )  # fmt: skip
    return piece, messages


def _offset(message: Message) -> int:
    offset = message.offset()
    if offset is None:
        raise TypeError("a consumed record has an offset")
    return offset
