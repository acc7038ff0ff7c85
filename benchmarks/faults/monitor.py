"""Watches from outside: how far each stage has committed, when it has recovered from a fault, and how much memory each process takes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from benchmarks.faults.rows import MODEL, PARTITIONS
from benchmarks.faults.world import World, memory_bytes
from compose.embedded.running import NotRunning
from runtime.kafka import consumer
from runtime.positions import PROBING, next_record
from runtime.settings import Settings
from schemas.errors import Outage
from schemas.topics import DEAD_LETTERS, FEEDBACK, OBSERVATIONS, OUTCOMES, REQUESTS

TICK_SEC: Final = 0.1
KAFKA_SEC: Final = 2.0
MEMORY_EVERY_SEC: Final = 2.0

READS: Final = {
    "gateway": {REQUESTS.for_model(MODEL): PARTITIONS},
    "sink": {
        OBSERVATIONS.name: OBSERVATIONS.partitions,
        OUTCOMES.name: OUTCOMES.partitions,
        DEAD_LETTERS.name: DEAD_LETTERS.partitions,
    },
    "labels": {FEEDBACK.for_model(MODEL): PARTITIONS},
    "worker": {OBSERVATIONS.name: OBSERVATIONS.partitions, OUTCOMES.name: OUTCOMES.partitions},
    "control": {OUTCOMES.name: OUTCOMES.partitions},
}
"""Stage (and consumer group) → topics with their partitions; of control's those that always flow."""

_QUIET: Final[dict[str, Any]] = {"reconnect.backoff.max.ms": 200, "log_level": 0}
_PROBING: Final[dict[str, Any]] = {**_QUIET, **PROBING}

Places = dict[tuple[str, int], int]


@dataclass
class _Pending:
    """A fault that is over, with the offsets that its stages have yet to reach."""

    stages: tuple[str, ...]
    process: str
    """That has to be ready again; "" for none."""
    ended_pid: int | None
    """Of the process that the fault ended: while it is still there, its readiness means nothing."""
    targets: dict[str, Places] | None = None
    """None until Kafka could be asked."""


@dataclass
class Recovery:
    """Of one fault: when it had recovered (monotonic seconds), how long that took from the last end of a fault that hit the same, and
    which stage or process was the last to recover."""

    at: float
    took_sec: float
    slowest: str


class Offsets:
    """How far the stages are, by clients that are not for two threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: dict[str, Consumer] = {}
        self._prober: Consumer | None = None
        self._before: dict[str, Places] = {}
        """By stage, as far as it had committed when it was asked last."""

    def ends(self, stage: str) -> Places:
        """Where what the stage reads ends now."""
        client = self._client(stage)
        found: Places = {}
        for topic, partitions in READS[stage].items():
            for partition in range(partitions):
                marks = client.get_watermark_offsets(TopicPartition(topic, partition), timeout=KAFKA_SEC)
                found[topic, partition] = int(marks[1]) if marks else 0
        return found

    def committed(self, stage: str) -> Places:
        """How far the stage has committed."""
        places = [TopicPartition(topic, p) for topic, n in READS[stage].items() for p in range(n)]
        found = self._client(stage).committed(places, timeout=KAFKA_SEC)
        return {(place.topic, place.partition): max(place.offset, 0) for place in found}

    def has_reached(self, stage: str, ends: Places) -> bool:
        """Whether the stage has committed every record below `ends`.

        A worker's offset never passes the marker of the transaction that it read last, so behind one that stands it is tried what is left.
        """
        committed = self.committed(stage)
        before, self._before[stage] = self._before.get(stage, {}), committed
        return all(
            offset >= ends[place]
            or (before.get(place) == offset and self._only_markers_left(place, offset, ends[place]))
            for place, offset in committed.items()
        )

    def _only_markers_left(self, place: tuple[str, int], offset: int, end: int) -> bool:
        if self._prober is None:
            self._prober = consumer(self._settings, "fault-monitor", **_PROBING)
        found = next_record(self._prober, place, offset, within_sec=KAFKA_SEC)
        return (found if isinstance(found, int) else found.offset() or 0) >= end

    def _client(self, stage: str) -> Consumer:
        """A client with the group's name only to read its offsets: it subscribes to nothing, so it is no member."""
        if stage not in self._clients:
            self._clients[stage] = consumer(self._settings, stage, **_QUIET)
        return self._clients[stage]

    def forget(self) -> None:
        """After the broker was away: a client that saw that may wait long before it tries again."""
        self.close()
        self._clients.clear()
        self._prober = None

    def close(self) -> None:
        """Let go."""
        for client in (*self._clients.values(), self._prober):
            if client is not None:
                client.close()


def wait_caught_up(settings: Settings, stages: tuple[str, ...], still_sec: float) -> None:
    """Until the stages have committed all there is; who calls has paused the load. A stage may take as long as it moves.

    Raises:
        TimeoutError: a stage has come no further for `still_sec`; names it and its lag.
    """
    offsets = Offsets(settings)
    try:
        for stage in stages:
            furthest, moved = -1, time.monotonic()
            while True:
                try:
                    committed, ends = offsets.committed(stage), offsets.ends(stage)
                except KafkaException as error:
                    left = f"is {error}, says Kafka"
                    offsets.forget()
                else:
                    # Markers of transactions count as records.
                    lags = {
                        place: end - committed[place] for place, end in ends.items() if end > committed[place]
                    }
                    if not lags:
                        break
                    left = ", ".join(f"{topic}:{number} {lag}" for (topic, number), lag in lags.items())
                    if (reached := sum(committed.values())) > furthest:
                        furthest, moved = reached, time.monotonic()
                if time.monotonic() > moved + still_sec:
                    raise TimeoutError(
                        f"records left of {stage}, which has not moved for {still_sec:.0f} s: {left}"
                    )
                time.sleep(TICK_SEC)
    finally:
        offsets.close()


def is_back(row: Mapping[str, Any], ended_pid: int | None) -> bool:
    """Whether a process is ready, and not the one that was ended: that may say so a while longer."""
    return row["state"] == "ready" and row["pid"] not in (None, ended_pid)


@dataclass
class Monitor:
    """A thread that asks Kafka; the harness reads `recoveries` and `memory_peaks_bytes`."""

    world: World
    recoveries: dict[int, Recovery] = field(default_factory=dict)
    memory_peaks_bytes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._ended: dict[str, float] = {}
        """Stage → end of the last fault that hit it."""
        self._stop = threading.Event()
        self._offsets = Offsets(self.world.settings)
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()

    def ended(self, number: int, stages: tuple[str, ...], process: str, ended_pid: int | None) -> None:
        """The fault of this number is over: `stages` have to catch up, and `process`, if it is not "", has to be ready."""
        now = time.monotonic()
        with self._lock:
            for place in (*stages, process):
                self._ended[place] = now
            self._pending[number] = _Pending(stages, process, ended_pid)

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(4 * KAFKA_SEC)

    @property
    def unrecovered(self) -> list[int]:
        """Faults whose stages have not caught up yet."""
        with self._lock:
            return sorted(self._pending)

    def _run(self) -> None:
        measured = 0.0
        while not self._stop.wait(TICK_SEC):
            with self._lock:
                pending = list(self._pending.items())
            try:
                for number, one in pending:
                    self._look(number, one)
            except (KafkaException, Outage):
                self._offsets.forget()
            except NotRunning:
                continue
            if time.monotonic() >= measured + MEMORY_EVERY_SEC:
                measured = time.monotonic()
                self._measure()
        self._offsets.close()

    def _look(self, number: int, one: _Pending) -> None:
        slowest = one.process
        if one.process and not is_back(self.world.status()[one.process], one.ended_pid):
            return
        if one.targets is None:
            one.targets = {stage: self._offsets.ends(stage) for stage in one.stages}
        for stage in list(one.targets):
            if self._offsets.has_reached(stage, one.targets[stage]):
                del one.targets[stage]
                slowest = stage
        if one.targets:
            return
        now = time.monotonic()
        with self._lock:
            last = max(self._ended[place] for place in one.stages or (one.process,))
            del self._pending[number]
            self.recoveries[number] = Recovery(now, max(now - last, 0.0), slowest)

    def _measure(self) -> None:
        """Peak memory by kind of process, and of this harness."""
        sizes = {"harness": memory_bytes(os.getpid(), children=False)}
        for name, row in self.world.status().items():
            if row["pid"] is not None:
                kind = name.rpartition("-")[0] or name
                sizes[kind] = max(sizes.get(kind, 0), memory_bytes(row["pid"]))
        for kind, size in sizes.items():
            self.memory_peaks_bytes[kind] = max(size, self.memory_peaks_bytes.get(kind, 0))
