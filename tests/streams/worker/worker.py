"""A worker process, a model of its own, and both ends of its topics."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from confluent_kafka import Message

from runtime.settings import Settings
from runtime.transactions import TransactionalProducer
from schemas.arrow import encode_batch
from schemas.events import Alert, DriftEvidence, WindowMetrics
from schemas.spec import ModelSpec
from schemas.topics import ALERTS, DRIFT, METRICS
from tests.reader import Reader
from tests.services import Service, service
from tests.streams.worker.batches import SPEC, features, write_artifact, write_model

E = TypeVar("E", Alert, DriftEvidence, WindowMetrics)
TOPIC_OF: dict[type, str] = {WindowMetrics: METRICS.name, DriftEvidence: DRIFT.name, Alert: ALERTS.name}


def worker_process(settings: Settings, log: Path) -> AbstractContextManager[Service]:
    """A started worker that does not outlive the block."""
    return service(settings, log, "streams", "worker")


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
        self._reader = Reader(settings, TOPIC_OF[kind], from_start=True)
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
        self._model = model.encode()
        self._taken = 0
        self.all: list[Any] = []

    def read(self) -> list[Any]:
        """What was committed before the call is among them."""
        return self._take(self._reader.read())

    def wait(self, condition: Callable[[list[Any]], Any], what: str, within_sec: float = 60.0) -> list[Any]:
        """Read until `condition` holds of all events."""
        self._reader.wait(lambda messages: condition(self._take(messages)), what, within_sec)
        return self.all

    def close(self) -> None:
        self._reader.close()

    def _take(self, messages: list[Message]) -> list[Any]:
        mine = [message for message in messages[self._taken :] if message.key() == self._model]
        self.all += [self._decoder.decode(message.value() or b"") for message in mine]
        self._taken = len(messages)
        return self.all


class Bench:
    """One model of its own in a running infrastructure; `folder` holds all models that a worker serves."""

    def __init__(self, settings: Settings, folder: Path, name: str) -> None:
        self.settings = msgspec.structs.replace(
            settings, models_dir=folder / "models", artifacts_dir=folder / "artifacts"
        )
        self.spec: ModelSpec = write_model(self.settings.models_dir, SPEC.replace("drifty", name))
        self.rng = np.random.default_rng(7)
        write_artifact(self.settings.artifacts_dir, self.spec, features(self.rng, 5000))
        self.written = features(self.rng, 0)
        """What a test wants to look at again."""
        self.source = Source(self.settings)
        self.log = folder / "worker.log"
        self.metrics = Events(self.settings, WindowMetrics, name)
        self.drift = Events(self.settings, DriftEvidence, name)
        self.alerts = Events(self.settings, Alert, name)

    def close(self) -> None:
        for events in (self.metrics, self.drift, self.alerts):
            events.close()


def newest(events: list[WindowMetrics]) -> dict[tuple[Any, ...], WindowMetrics]:
    """What holds of each window: its highest revision."""
    found: dict[tuple[Any, ...], WindowMetrics] = {}
    for event in events:
        key = (event.window_start_ms, event.role, event.arm, event.version, event.segment)
        if key not in found or event.revision > found[key].revision:
            found[key] = event
    return found
