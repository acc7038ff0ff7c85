"""One served model: its spec, its decoder, its route, and the records that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import Final

from confluent_kafka import Message

from inference.decode import Decoder
from inference.progress import Assignment, Progress, Slice
from inference.router import Route
from schemas.spec import ModelSpec
from schemas.topics import PREDICTIONS, REDRIVES, REQUESTS

BATCH_BYTES: Final = 16 * 1024 * 1024
"""Request bytes in a micro-batch, about; large texts make smaller batches."""


@dataclass
class Fragment:
    """Records of one partition, as they were polled."""

    assignment: Assignment
    messages: list[Message]


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
        self._inbox.append(fragment)
        self._rows += len(fragment.messages)
        self.waiting.set()
        if self._rows >= self.spec.serve.max_batch_rows:
            self._filled.set()

    async def fill(self) -> None:
        """Wait for a full micro-batch, but no longer than the oldest row's `latency_budget_ms`: a transaction costs the broker as much
        for one row as for a thousand."""
        due = self._oldest_sec + self.spec.serve.latency_budget_ms / 1000
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._filled.wait()

    def take(self, progress: Progress) -> list[tuple[Slice, list[Message]]]:
        """The next micro-batch, begun in `progress`: at most `max_batch_rows` records, [] if none wait.

        While the workers are busy records gather here, so that batches grow with the load.
        """
        room_rows, room_bytes = self.spec.serve.max_batch_rows, BATCH_BYTES
        gathered: dict[Assignment, list[Message]] = {}
        while room_rows > 0 and room_bytes > 0 and self._inbox:
            fragment = self._inbox[0]
            messages = fragment.messages[:room_rows]
            size_bytes = sum(map(len, messages))
            if size_bytes > room_bytes:
                messages = messages[: max(1, len(messages) * room_bytes // size_bytes)]
                size_bytes = sum(map(len, messages))
            self._rows -= len(messages)
            if len(messages) == len(fragment.messages):
                self._inbox.popleft()
            else:
                fragment.messages = fragment.messages[len(messages) :]
            if not fragment.assignment.ended:
                gathered.setdefault(fragment.assignment, []).extend(messages)
                room_rows -= len(messages)
                room_bytes -= size_bytes
        if not self._inbox:
            self.waiting.clear()
        if self._rows < self.spec.serve.max_batch_rows:
            self._filled.clear()
        batch = [(_slice(assignment, messages), messages) for assignment, messages in gathered.items()]
        return [(piece, messages) for piece, messages in batch if progress.begin(piece)]


def _slice(assignment: Assignment, messages: list[Message]) -> Slice:
    return Slice(
        assignment,
        first_offset=_offset(messages[0]), next_offset=_offset(messages[-1]) + 1, rows=len(messages),
        size_bytes=sum(map(len, messages)), first_ms=messages[0].timestamp()[1],
    )  # fmt: skip


def _offset(message: Message) -> int:
    offset = message.offset()
    if offset is None:
        raise TypeError("a consumed record has an offset")
    return offset
