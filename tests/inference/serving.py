"""A gateway in a process of its own, and what its tests write and read around it."""

from __future__ import annotations

import contextlib
import json
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from confluent_kafka import Message, TopicPartition

from features.columns import Columns
from runtime.artifacts import ArtifactStore
from runtime.kafka import admin, consumer, producer, topic_ids
from runtime.settings import Settings
from schemas.arrow import decode_batch
from schemas.events import Arm, RouteTable
from schemas.formats import ARROW_TYPE
from schemas.topics import DEAD_LETTERS, OBSERVATIONS, PREDICTIONS, REQUESTS, ROUTES
from tests.reader import Reader
from tests.services import Service
from tests.triton_models.artifacts import write_version
from tests.waiting import until

MODEL = "electricity"
REQUESTS_TOPIC = REQUESTS.for_model(MODEL)
PREDICTIONS_TOPIC = PREDICTIONS.for_model(MODEL)
GOLDEN = Columns(np.random.default_rng(7).random((32, 6), dtype=np.float32), pa.array([], pa.string()))
FEATURES = {
    "period": 0.5, "nswprice": 0.06, "nswdemand": 0.44, "vicprice": 0.003, "vicdemand": 0.42, "transfer": 0.41,
}  # fmt: skip


def version(settings: Settings, name: str, golden_error: float = 0.0) -> str:
    """The artifact of a new version of the model with random weights; `golden_error` falsifies its recorded answer."""
    store = ArtifactStore(settings.artifacts_dir)
    return write_version(
        store, settings.models_dir, name, model=MODEL, columns=GOLDEN, golden_error=golden_error
    ).artifact


def arm(artifact: str, name: str = "champion", role: str = "live", weight: float = 1.0) -> Arm:
    return msgspec.convert(
        {
            "name": name,
            "role": role,
            "version": artifact.partition("-")[0],
            "artifact": artifact,
            "weight": weight,
        },
        Arm,
    )


def route(settings: Settings, *arms: Arm, pass_until_ms: int = 0) -> int:
    """Write the model's next route table; return its revision."""
    revision = time.time_ns()
    table = RouteTable(
        event_id=str(uuid.uuid4()), model=MODEL, at_ms=0, revision=revision, stage="steady", arms=list(arms),
        rejections_pass_until_ms=pass_until_ms,
    )  # fmt: skip
    client = producer(settings)
    client.produce(ROUTES.name, msgspec.json.encode(table), MODEL.encode())
    assert client.flush(10) == 0
    return revision


def request(**changes: object) -> bytes:
    """A good request, with features changed (None: as null)."""
    return json.dumps(FEATURES | changes).encode()


@dataclass
class Sent:
    """Where a record came to lie."""

    partition: int
    offset: int


def send(settings: Settings, records: Sequence[Mapping[str, Any]], topic: str = REQUESTS_TOPIC) -> list[Sent]:
    """Produce records (arguments of `Producer.produce`) in order and return their places."""
    client = producer(settings)
    places: list[Sent | None] = [None] * len(records)

    def delivered(index: int) -> Callable[[object, Message], None]:
        def note(error: object, message: Message) -> None:
            assert error is None, error
            places[index] = Sent(message.partition() or 0, message.offset() or 0)

        return note

    for index, record in enumerate(records):
        while True:
            try:
                client.produce(topic, on_delivery=delivered(index), **record)
                break
            except BufferError:
                client.poll(0.1)
        client.poll(0)
    assert client.flush(30) == 0
    return [place for place in places if place is not None]


class Readers:
    """What a gateway writes for one model's requests."""

    def __init__(self, settings: Settings) -> None:
        self.predictions = Reader(settings, PREDICTIONS_TOPIC)
        self._observations = Reader(settings, OBSERVATIONS.name)
        self.dead_letters = Reader(settings, DEAD_LETTERS.name)
        self._rows: list[dict[str, Any]] = []
        self._decoded = 0
        self._awaited_rows: int | None = None

    def answers(self, count: int) -> list[dict[str, Any]]:
        """The predictions of `count` records, in the order of partition and offset."""
        found = sorted(self.predictions.until(count), key=lambda m: (m.partition(), m.offset()))
        return [json.loads(message.value() or b"") for message in found]

    def batches(self, count: int) -> list[list[dict[str, Any]]]:
        """The rows of `count` answers to Arrow records, in the order of partition and offset."""
        found = sorted(self.predictions.until(count), key=lambda m: (m.partition(), m.offset()))
        assert {dict(m.headers() or [])["content-type"] for m in found} == {ARROW_TYPE.encode()}
        return [decode_batch(message.value() or b"").to_pylist() for message in found]

    def observations(self, count: int) -> list[dict[str, Any]]:
        """`count` observation rows."""
        self._observations.wait(lambda _: len(self._observed()) >= count, f"{count} rows")
        self._awaited_rows = count
        self._expect_no_more_rows()
        return self._rows

    def _observed(self) -> list[dict[str, Any]]:
        """The rows so far, each record decoded once."""
        messages = self._observations.messages
        for message in messages[self._decoded :]:
            self._rows += decode_batch(message.value() or b"").to_pylist()
        self._decoded = len(messages)
        return self._rows

    def expect_no_more(self) -> None:
        """Fails if more has come than a test has waited for, of what it has waited for."""
        self.predictions.expect_no_more()
        self.dead_letters.expect_no_more()
        self._expect_no_more_rows()

    def _expect_no_more_rows(self) -> None:
        if self._awaited_rows is not None:
            self._observations.read()
            assert len(self._observed()) == self._awaited_rows

    def close(self) -> None:
        for reader in (self.predictions, self._observations, self.dead_letters):
            reader.close()


@contextlib.contextmanager
def readers(settings: Settings) -> Iterator[Readers]:
    """What is written within the block; at its end nothing may have come beside what was waited for."""
    found = Readers(settings)
    try:
        yield found
        found.expect_no_more()
    finally:
        found.close()


class Gateway(Service):
    """`python -m inference`, started."""

    def __init__(self, settings: Settings, folder: Path, slot: int = 0) -> None:
        name = f"gateway-{uuid.uuid4().hex[:8]}.log"
        super().__init__(settings, folder / name, "inference", OMP_NUM_THREADS="1", TIDEMILL_SLOT=str(slot))
        self.start()

    def wait_route(self, revision: int) -> dict[str, Any]:
        """Wait until the route of that revision is in effect; what /health says of it."""

        def served() -> Any:
            found = self.health().get("detail", {}).get("routes", {}).get(MODEL, {})
            return found if found.get("revision") == revision else None

        found: dict[str, Any] = until(served, f"route {revision}: {self.log}")
        return found


@contextlib.contextmanager
def gateway(settings: Settings, folder: Path, slot: int = 0) -> Iterator[Gateway]:
    """A gateway that is ended, and must end cleanly unless the test ended it."""
    running = Gateway(settings, folder, slot)
    try:
        yield running
    finally:
        ended = running.exit_code
        code = running.stop() if ended is None else ended
    assert code in (0, -signal.SIGKILL), running.log.read_text()[-4000:]


def committed(settings: Settings, topic: str = REQUESTS_TOPIC) -> dict[int, tuple[int, str]]:
    """The gateways' committed offset and its metadata by partition, -1001 where there is none."""
    client = consumer(settings, "gateway")
    try:
        partitions = client.list_topics(topic, timeout=10).topics[topic].partitions
        places = client.committed([TopicPartition(topic, p) for p in partitions], timeout=10)
        return {place.partition: (place.offset, place.metadata or "") for place in places}
    finally:
        client.close()


def topic_id(settings: Settings, topic: str = REQUESTS_TOPIC) -> uuid.UUID:
    return topic_ids(admin(settings), [topic])[topic]
