"""Requests: bodies in every format, and a backlog of them on the broker."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
from confluent_kafka import KafkaException, Producer, TopicPartition

from benchmarks.sample import sample
from features.columns import Columns
from runtime.headers import Headers
from runtime.kafka import consumer, producer
from runtime.settings import Settings
from schemas.errors import Outage
from schemas.spec import ModelSpec
from schemas.topics import REQUESTS

Format: TypeAlias = Literal["json", "msgpack", "arrow"]
FORMATS: Final[tuple[Format, ...]] = ("json", "msgpack", "arrow")
CONTENT_TYPES: Final[dict[Format, str]] = {
    "json": "application/json",
    "msgpack": "application/msgpack",
    "arrow": "application/vnd.apache.arrow.stream",
}
TIMES: Final[dict[Format, int]] = {"json": 1, "msgpack": 1, "arrow": 6}
"""So many times as long is a backlog in each format: Arrow is worked off before its rate or memory can be seen."""
ARROW_ROWS: Final = 500
"""Rows in one Arrow record, fewer where rows are wide."""
ARROW_BYTES: Final = 2 * 1024 * 1024
DISTINCT_BYTES: Final = 8 * 1024 * 1024
DISTINCT_ROWS: Final = 8192
"""Bodies are drawn from a pool of so many, so that making them is no part of what is measured."""
KEYS: Final = 1000
DELIVERY_SEC: Final = 120.0
_FAST: Final = {"linger.ms": 20, "batch.num.messages": 100_000, "delivery.report.only.error": True}


@dataclass(frozen=True)
class Bodies:
    """A pool of encoded requests."""

    values: Sequence[bytes]
    rows_per_record: int
    headers: Sequence[tuple[str, bytes]]

    @property
    def record_bytes(self) -> float:
        return float(np.mean([len(value) for value in self.values]))

    def cycle(self) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) for ever. Keys are entities, and more of them than partitions by far."""
        keys = [b"entity-%d" % i for i in range(KEYS)]
        return zip(itertools.cycle(keys), itertools.cycle(self.values), strict=False)


def bodies(spec: ModelSpec, kind: Format, seed: int) -> Bodies:
    """A pool of random requests that `spec` admits. The same seed gives the same bytes."""
    width_bytes = 12 * len(spec.numbers) + 4096 * len(spec.texts)
    count = max(64, min(DISTINCT_ROWS, DISTINCT_BYTES // width_bytes))
    columns = sample(spec, count, np.random.default_rng(seed))
    headers = [("content-type", CONTENT_TYPES[kind].encode())]
    if kind == "arrow":
        arrow_bytes = 4 * len(spec.numbers) + 4096 * len(spec.texts)
        per_record = max(1, min(ARROW_ROWS, ARROW_BYTES // arrow_bytes, count))
        starts = range(0, count - per_record + 1, per_record)
        return Bodies(
            [_arrow(spec, columns.take(np.arange(s, s + per_record))) for s in starts], per_record, headers
        )
    rows = as_rows(spec, columns)
    if kind == "msgpack":
        return Bodies([msgspec.msgpack.encode(row) for row in rows], 1, headers)
    return Bodies([json.dumps(row, separators=(",", ":")).encode() for row in rows], 1, headers)


def as_rows(spec: ModelSpec, columns: Columns) -> list[dict[str, Any]]:
    """Feature → value for each row. Few features have the digits of a measurement, many those of a pixel."""
    digits = 16 if len(spec.numbers) <= 32 else 4
    numbers = columns.numbers.astype(np.float64)
    # float32 alone would be 0.1 in one digit too many; random low bits give a double's full length.
    numbers += np.random.default_rng(0).random(numbers.shape) * 1e-9 * (numbers < 0.999)
    named: list[dict[str, Any]] = [
        dict(zip(spec.numbers, row, strict=True)) for row in np.round(numbers, digits).tolist()
    ]
    for i, name in enumerate(spec.texts):
        for row, text in zip(named, columns.text(i).to_pylist(), strict=True):
            row[name] = text
    return named


def _arrow(spec: ModelSpec, columns: Columns) -> bytes:
    """One IPC stream: a column a feature."""
    arrays: dict[str, pa.Array] = {
        name: pa.array(columns.numbers[:, i]) for i, name in enumerate(spec.numbers)
    }
    arrays |= {name: columns.text(i) for i, name in enumerate(spec.texts)}
    batch = pa.RecordBatch.from_pydict(arrays)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


@dataclass(frozen=True)
class Backlog:
    """Records that lie on a topic, from `start` to before `end` in each partition."""

    topic: str
    start: dict[int, int]
    end: dict[int, int]
    rows_per_record: int

    @property
    def records(self) -> int:
        return sum(self.end.values()) - sum(self.start.values())

    @property
    def rows(self) -> int:
        return self.records * self.rows_per_record


def produce_backlog(settings: Settings, topic: str, pool: Bodies, rows: int) -> Backlog:
    """Put about `rows` rows on `topic` and wait until the broker has them all.

    Raises:
        Outage: it does not take them.
    """
    start = ends(settings, topic)
    client = producer(settings, **_FAST)
    count = _send_all(client, topic, pool, rows)
    left = client.flush(DELIVERY_SEC)
    if left:
        raise Outage(
            f"{left} of {count} records of the backlog were not delivered within {DELIVERY_SEC:.0f} s"
        )
    end = ends(settings, topic)
    found = Backlog(topic, start, end, pool.rows_per_record)
    if found.records != count:
        raise Outage(f"{topic}: {count} records were sent and {found.records} arrived")
    return found


class HeldBacklog:
    """A backlog that lies on the broker and that nobody can read yet: it is one transaction, and open.

    So whoever is to read it can be started first, and all of them begin at the same moment.
    """

    def __init__(self, settings: Settings, topic: str, pool: Bodies, rows: int) -> None:
        """Raises `Outage` if the broker does not take it."""
        self._settings, self._topic, self._rows_per_record = settings, topic, pool.rows_per_record
        self._start = ends(settings, topic)
        self._client = producer(
            settings, **_FAST, **{"transactional.id": "bench-backlog", "transaction.timeout.ms": 600_000}
        )
        try:
            self._client.init_transactions(DELIVERY_SEC)
            self._client.begin_transaction()
            self.records = _send_all(self._client, topic, pool, rows)
            left = self._client.flush(DELIVERY_SEC)
        except KafkaException as error:
            raise Outage(f"{topic}: a backlog: {error.args[0].str()}") from error
        if left:
            raise Outage(f"{left} of {self.records} records were not delivered within {DELIVERY_SEC:.0f} s")

    def release(self) -> Backlog:
        """Let it be read.

        Raises:
            Outage: the transaction cannot be committed.
        """
        try:
            self._client.commit_transaction(DELIVERY_SEC)
        except KafkaException as error:
            raise Outage(f"{self._topic}: a backlog: {error.args[0].str()}") from error
        deadline = time.monotonic() + DELIVERY_SEC
        while (
            True
        ):  # the markers that end a transaction follow its commit, one to each partition that it wrote to
            high = ends(self._settings, self._topic)
            end = {p: offset - (offset > self._start[p]) for p, offset in high.items()}
            found = Backlog(self._topic, self._start, end, self._rows_per_record)
            if found.records == self.records:
                return found
            if time.monotonic() > deadline:
                raise Outage(
                    f"{self._topic}: {self.records} records were sent and {found.records} can be read"
                )
            time.sleep(0.01)


def _send_all(client: Producer, topic: str, pool: Bodies, rows: int) -> int:
    """Send about `rows` rows; return how many records they are."""
    count = max(1, rows // pool.rows_per_record)
    headers: Headers = list(pool.headers)
    for key, value in itertools.islice(pool.cycle(), count):
        send(client, topic, value, key, headers)
    return count


def send(client: Producer, topic: str, value: bytes, key: bytes, headers: Headers) -> None:
    """Produce; where the queue is full, go no faster than the broker."""
    while True:
        try:
            client.produce(topic, value, key, headers=headers)
            return
        except BufferError:
            client.poll(0.05)


def ends(settings: Settings, topic: str) -> dict[int, int]:
    """The next offset of each partition."""
    client = consumer(settings, "bench-ends")
    try:
        partitions = client.list_topics(topic, timeout=10).topics[topic].partitions
        return {
            p: client.get_watermark_offsets(TopicPartition(topic, p), timeout=10, cached=False)[1]
            for p in sorted(partitions)
        }
    finally:
        client.close()


def request_topic(model: str) -> str:
    return REQUESTS.for_model(model)
