"""A worker process, and both ends of its topics."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
from confluent_kafka import KafkaError, TopicPartition

from runtime.kafka import consumer
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer
from schemas.arrow import encode_batch
from schemas.events import Alert, DriftEvidence, WindowMetrics
from schemas.topics import ALERTS, DRIFT, METRICS

E = TypeVar("E", Alert, DriftEvidence, WindowMetrics)
TOPIC_OF: dict[type, str] = {WindowMetrics: METRICS.name, DriftEvidence: DRIFT.name, Alert: ALERTS.name}


class WorkerProcess:
    """`python -m streams worker`, killed and started at will."""

    def __init__(self, settings: Settings, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.http_port: int = probe.getsockname()[1]
        self._settings = msgspec.structs.replace(settings, http_port=self.http_port)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streams", "worker"], env=self._environment(), stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL, and reap."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(30)
        self._process = None
        return code

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        return self._process is not None

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._settings.environment()}


@contextmanager
def worker_process(settings: Settings, log: Path) -> Iterator[WorkerProcess]:
    """A started worker that does not outlive the block."""
    process = WorkerProcess(settings, log)
    process.start()
    try:
        yield process
    finally:
        if process.running:
            process.kill()


class Source:
    """A transactional writer, as gateway and labels are."""

    def __init__(self, settings: Settings) -> None:
        self._producer = TransactionalProducer(settings, f"test-{uuid.uuid4()}")

    def commit(self, topic: str, batches: Iterable[pa.RecordBatch], partition: int = 0) -> None:
        self._write(topic, batches, partition)
        self._producer.commit()

    def abort(self, topic: str, batches: Iterable[pa.RecordBatch], partition: int = 0) -> None:
        """Written, sent, and taken back."""
        self._write(topic, batches, partition)
        self._producer._producer.flush(10)
        self._producer.abort()

    def _write(self, topic: str, batches: Iterable[pa.RecordBatch], partition: int) -> None:
        self._producer.begin()
        for batch in batches:
            self._producer.produce(topic, encode_batch(batch), b"source", partition=partition)


class Events:
    """Reads a topic of events, committed ones only, from its beginning; `all` is what came so far for one model."""

    def __init__(self, settings: Settings, kind: type[E], model: str) -> None:
        overrides: dict[str, Any] = {"enable.partition.eof": True}
        self._consumer = consumer(settings, f"test-{uuid.uuid4()}", **overrides)
        topic = TOPIC_OF[kind]
        partitions = self._consumer.list_topics(topic, timeout=10).topics[topic].partitions
        self._consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
        self._model = model
        self.all: list[Any] = []

    def read(self) -> list[Any]:
        for message in self._consumer.consume(1000, 0.3):
            error = message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
            elif message.key() == self._model.encode():
                self.all.append(self._decoder.decode(message.value() or b""))
        return self.all

    def wait(self, until: Callable[[list[Any]], bool], timeout_sec: float = 60.0) -> list[Any]:
        """Read until `until` holds of all events."""
        deadline = time.monotonic() + timeout_sec
        while not until(self.read()):
            assert time.monotonic() < deadline, (
                f"not within {timeout_sec} s; {len(self.all)} events: {self.all[-3:]}"
            )
        return self.all

    def close(self) -> None:
        self._consumer.close()


def newest(events: list[WindowMetrics]) -> dict[tuple[Any, ...], WindowMetrics]:
    """What holds of each window: its highest revision."""
    found: dict[tuple[Any, ...], WindowMetrics] = {}
    for event in events:
        key = (event.window_start_ms, event.role, event.arm, event.version, event.segment)
        if key not in found or event.revision > found[key].revision:
            found[key] = event
    return found
