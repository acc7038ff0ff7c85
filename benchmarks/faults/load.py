"""The load: requests with poison at a known rate, feedback of every kind, and orders to train, by an idempotent producer; and what is
known of it.

Runs in a thread of its own. What was sent follows from the seed; only where the broker put it is kept, in arrays.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.faults import rows
from benchmarks.faults.rows import CASES, GOOD, LEAST_WIDTH, MODEL, NO_CASE, PARTITIONS, POISON
from benchmarks.faults.sender import Record, Sender
from runtime.clock import now_ms
from runtime.headers import Headers
from runtime.settings import Settings
from schemas.events import Command
from schemas.identity import name_id, prediction_id
from schemas.topics import COMMANDS, FEEDBACK, REQUESTS

BLOCKS_PER_SEC: Final = 6.0
"""Rows go in blocks. Each is a transaction or two of every stage, whatever its size, and it is those that two cores have to afford."""
LATE_SEC: Final = 3.0
COMMAND_BLOCKS: Final = 40
"""With the first of so many blocks goes an order to train."""
FIRST_CAPACITY: Final = 1 << 16
UNACKNOWLEDGED: Final = 50_000
"""Sent and not acknowledged: beyond it the load waits, as when the broker is away."""


class Ledger:
    """Where each request came to lie: row → generation of the topic, offset and timestamp; partitions follow from the keys."""

    def __init__(self, seed: int, width: int = LEAST_WIDTH) -> None:
        self.seed = seed
        self.width = width
        """Numbers of a request."""
        self.sent = 0
        self.topic_ids: list[uuid.UUID] = []
        """By generation: a recreated topic has another one."""
        self.first_rows: list[int] = []
        """By generation."""
        self.offsets: NDArray[np.int64] = np.full(FIRST_CAPACITY, -1, np.int64)
        self.timestamps_ms: NDArray[np.int64] = np.zeros(FIRST_CAPACITY, np.int64)
        self.odd_feedback: dict[tuple[int, int], tuple[str, bytes, int]] = {}
        """(partition, offset) → reason, value and timestamp of feedback that must be dead-lettered; one record in a thousand."""
        self.feedback_records = 0
        self.commands: list[str] = []
        """Ids of the orders to train, in the order of the log."""

    def grow(self, end: int) -> None:
        """Make room for rows below `end`."""
        if end > len(self.offsets):
            more = max(len(self.offsets), end)
            self.offsets = np.concatenate([self.offsets, np.full(more, -1, np.int64)])
            self.timestamps_ms = np.concatenate([self.timestamps_ms, np.zeros(more, np.int64)])

    def generation(self, topic_id: uuid.UUID) -> None:
        """What is sent from now on goes to this topic."""
        self.topic_ids.append(topic_id)
        self.first_rows.append(self.sent)


class Load:
    """Sends until told to stop. `base_ms` is the event time of feedback on row 0; `snapshot` names the rows to train on."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        rate_rows_per_sec: float,
        snapshot: str,
        on_replace: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`on_replace` hears why another client takes over."""
        self.ledger = ledger
        self.failure: BaseException | None = None
        self.base_ms = time.time_ns() // 1_000_000
        self._rate = rate_rows_per_sec
        self._block = max(1, round(rate_rows_per_sec / BLOCKS_PER_SEC))
        self._snapshot = snapshot
        self._requests, self._feedback = REQUESTS.for_model(MODEL), FEEDBACK.for_model(MODEL)
        self._stop, self._pause, self._paused = threading.Event(), threading.Event(), threading.Event()
        self._answered_for = 0
        """Rows below have had their late feedback."""
        self._sender = Sender(settings, on_replace)
        self._thread = threading.Thread(target=self._guarded, name="load", daemon=True)

    def start(self, topic_id: uuid.UUID) -> None:
        """Begin, with the request topic of this id."""
        self.ledger.generation(topic_id)
        self._thread.start()

    def pause(self) -> None:
        """Return when nothing more is sent and everything sent is acknowledged."""
        self._pause.set()
        while not self._paused.wait(0.1):
            self.check()

    def resume(self, topic_id: uuid.UUID | None = None) -> None:
        """Go on, if `topic_id` is given in a recreated topic."""
        if topic_id is not None:
            self.ledger.generation(topic_id)
            self._sender.begin_anew(self._requests)
        self._paused.clear()
        self._pause.clear()

    def give_up(self, error: BaseException) -> None:
        """Nobody knows any longer where records come to lie: `check` raises `error` from now on."""
        self.failure = error
        self._stop.set()

    def finish(self) -> None:
        """Send what feedback is owed, and end."""
        self._stop.set()
        self._pause.clear()
        self._thread.join()
        self.check()

    def check(self) -> None:
        """Raises what ended the load before its time."""
        if self.failure is not None:
            raise self.failure

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001  handed to whoever asks
            self.failure = error
            self._paused.set()

    def _run(self) -> None:
        budget, last = 0.0, time.monotonic()
        while not self._stop.is_set():
            if self._pause.is_set():
                self._sender.flush()
                self._paused.set()
                while self._pause.is_set() and not self._stop.is_set():
                    self._stop.wait(0.02)
                last = time.monotonic()
                self._sender.rest()
                continue
            now = time.monotonic()
            budget = min(budget + (now - last) * self._rate, self._rate)
            last = now
            if budget < self._block or self._sender.unacknowledged > UNACKNOWLEDGED:
                self._sender.poll(0.01)
                continue
            budget -= self._block
            self._send_block(self.ledger.sent, self.ledger.sent + self._block)
            self._send_late(int(self.ledger.sent - LATE_SEC * self._rate))
            self._sender.poll(0)
        self._sender.flush()
        self._send_late(self.ledger.sent)
        self._sender.flush()

    def _send_block(self, first: int, end: int) -> None:
        ledger, seed = self.ledger, self.ledger.seed
        which = np.arange(first, end)
        ledger.grow(end)
        kinds, key_of = rows.poison_kinds(seed, which).tolist(), rows.keys(seed, which).tolist()
        for row, value in enumerate(rows.values(seed, first, end, ledger.width), start=first):
            key, kind = key_of[row - first], kinds[row - first]
            headers: Headers | None = [*POISON[kind].headers] if kind != GOOD else None
            ledger.timestamps_ms[row] = at_ms = now_ms()
            self._produce(self._requests, value, key, self._place(row), at_ms, headers)
        ledger.sent = end
        block = first // self._block
        if block % COMMAND_BLOCKS == 0:
            self._command(block // COMMAND_BLOCKS)
        self._send_feedback(first, end, late=False)
        self._send_odd(first, end, key_of)

    def _place(self, row: int) -> Callable[[int], None]:
        def lies(offset: int) -> None:
            self.ledger.offsets[row] = offset

        return lies

    def _send_late(self, end: int) -> None:
        """Late feedback on rows below `end`, as far as they are acknowledged."""
        while self._answered_for + self._block <= end:
            first = self._answered_for
            if (self.ledger.offsets[first : first + self._block] < 0).any():
                return  # a prediction's id needs the offset; it comes with the next block
            self._send_feedback(first, first + self._block, late=True)
            self._answered_for += self._block

    def _send_feedback(self, first: int, end: int, *, late: bool) -> None:
        seed = self.ledger.seed
        which = np.arange(first, end)
        case_of = rows.cases(seed, which)
        chosen = np.flatnonzero(case_of != NO_CASE)
        key_of = rows.keys(seed, which)
        for n in chosen.tolist():
            for said in CASES[int(case_of[n])]:
                if said.late is late:
                    self._say(first + n, int(key_of[n]), said)

    def _say(self, row: int, key: int, said: rows.Said) -> None:
        truth = rows.CLASSES[int(rows.truths(self.ledger.seed, np.array([row]), np.array([said.number]))[0])]
        if said.by_prediction:
            about = f'"prediction_id":"{self.prediction_id(row, key % PARTITIONS)}"'
        else:
            about = f'"request_id":"{row}"'
        at_ms = self.base_ms + row + said.at
        value = f'{{"kind":"label","value":"{truth}","feedback_id":"{row}-{said.number}","at_ms":{at_ms},{about}}}'
        self._produce(self._feedback, value.encode(), key, self._counted, now_ms())

    def _send_odd(self, first: int, end: int, key_of: list[int]) -> None:
        """Feedback on nothing, and feedback that is none."""
        for row in range(first, end):
            if row % rows.ORPHAN_OF == 0:
                value = (
                    f'{{"kind":"label","value":"yes","feedback_id":"{row}-orphan","request_id":"nobody-{row}"}}'
                ).encode()
                self._say_odd(key_of[row - first], "orphan_feedback", value)
            if row % rows.BAD_OF == 0:
                reason, text = rows.BAD_FEEDBACK[row // rows.BAD_OF % len(rows.BAD_FEEDBACK)]
                self._say_odd(key_of[row - first], reason, text % row)

    def _say_odd(self, key: int, reason: str, value: bytes) -> None:
        at_ms = now_ms()

        def lies(offset: int) -> None:
            self.ledger.feedback_records += 1
            self.ledger.odd_feedback[key % PARTITIONS, offset] = reason, value, at_ms

        self._produce(self._feedback, value, key, lies, at_ms)

    def _command(self, number: int) -> None:
        """A person has a version trained from a file."""
        command = Command(
            event_id=str(name_id("fault", "command", self.ledger.seed, number)), model=MODEL, at_ms=now_ms(),
            action="train", by="the fault harness", snapshot=self._snapshot,
        )  # fmt: skip

        def lies(_offset: int) -> None:
            self.ledger.commands.append(command.event_id)

        value = msgspec.json.encode(command)
        self._sender.send(Record(COMMANDS.name, value, MODEL.encode(), 0, command.at_ms, None, lies))

    def _counted(self, _offset: int) -> None:
        self.ledger.feedback_records += 1

    def prediction_id(self, row: int, partition: int) -> uuid.UUID:
        """The id that the answer to an acknowledged row must have."""
        ledger = self.ledger
        generation = int(np.searchsorted(ledger.first_rows, row, side="right")) - 1
        return prediction_id(
            int(ledger.timestamps_ms[row]), ledger.topic_ids[generation], partition, int(ledger.offsets[row])
        )

    def _produce(
        self, topic: str, value: bytes, key: int, lies: Callable[[int], None], at_ms: int,
        headers: Headers | None = None,
    ) -> None:  # fmt: skip
        self._sender.send(Record(topic, value, rows.entity(key), key % PARTITIONS, at_ms, headers, lies))
