"""What the sink lives between: producers of observations, the group's offsets, ClickHouse, and the sink as a process."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from numpy.typing import NDArray

from runtime.kafka import consumer, producer
from runtime.settings import Settings
from schemas.arrow import MS, OBSERVATION_COLUMNS, OBSERVATIONS, UUID, encode_batch
from schemas.events import Alert
from schemas.identity import prediction_ids
from tests.compose.clickhouse_server import ServerProcess
from tests.services import Service
from tests.streams.sink.proxy import Proxy
from tests.waiting import until

WAIT_SEC: Final = 30.0
MODEL: Final = "m"
SPEC: Final = """
name = "m"
task = "binary"
classes = ["down", "up"]
module = "model:M"
[features]
a = { type = "float" }
"""


def observations(source: uuid.UUID, first: int, rows: int, at_ms: int | None = None) -> pa.RecordBatch:
    """Answered live observations of requests `first` … of the topic `source`, partition 0."""
    offsets: NDArray[np.int64] = np.arange(first, first + rows, dtype=np.int64)
    times = np.full(rows, time.time_ns() // 1_000_000 if at_ms is None else at_ms, dtype=np.int64)
    ids = prediction_ids(times, [(source, 0, len(offsets))], offsets, np.zeros_like(offsets))
    given = {
        "prediction_id": pa.array([one.tobytes() for one in ids], UUID),
        "request_id": pa.array([f"{source}-{offset}" for offset in offsets]),
        "model": pa.array([MODEL] * rows), "role": pa.array(["live"] * rows), "arm": pa.array(["champion"] * rows),
        "status": pa.array(["answered"] * rows), "topic_id": pa.array([source.bytes] * rows, UUID), "offset": pa.array(offsets),
        "requested_at": pa.array(times).cast(MS), "observed_at": pa.array(times).cast(MS),
    }  # fmt: skip
    return pa.record_batch(
        [given[c.name] if c.name in given else _filler(c.arrow, rows) for c in OBSERVATION_COLUMNS],
        OBSERVATIONS,
    )


def _filler(kind: pa.DataType, rows: int) -> pa.Array:
    if pa.types.is_list(kind):
        return pa.array([[]] * rows, kind)
    return pa.array([""] * rows) if kind == pa.string() else pa.array(np.zeros(rows)).cast(kind)


@dataclass
class World:
    """Broker and ClickHouse, the proxy between sink and ClickHouse, and the sinks of one test."""

    settings: Settings
    engine: ServerProcess
    client: Client
    proxy: Proxy
    folder: Path
    engine_folder: Path
    sinks: list[Service] = field(default_factory=list)

    def sink(self, slot: int = 0) -> Service:
        settings = msgspec.structs.replace(self.settings, clickhouse_url=self.proxy.url, slot=slot)
        sink = Service(settings, self.folder / f"sink-{slot}.log", "streams", "sink").start()
        self.sinks.append(sink)
        return sink

    @cached_property
    def producer(self) -> Producer:
        return producer(self.settings)

    @cached_property
    def transactional(self) -> Producer:
        made = producer(
            self.settings, **{"transactional.id": f"test-{uuid.uuid4()}", "transaction.timeout.ms": 5000}
        )
        made.init_transactions(30)
        return made

    def transaction(self, batches: list[pa.RecordBatch], partition: int = 0, commit: bool = True) -> None:
        """Observations in one transaction."""
        self.transactional.begin_transaction()
        for batch in batches:
            self.transactional.produce("observations", encode_batch(batch), partition=partition)
        self.transactional.flush()
        if commit:
            self.transactional.commit_transaction(30)
        else:
            self.transactional.abort_transaction(30)

    def produce(self, topic: str, value: bytes | None, partition: int = 0, **more: Any) -> int:
        """One record; returns its offset."""
        offsets: list[int | None] = []
        self.producer.produce(
            topic,
            value,
            partition=partition,
            on_delivery=lambda error, message: offsets.append(message.offset()),
            **more,
        )
        assert self.producer.flush(WAIT_SEC) == 0
        assert offsets[0] is not None
        return offsets[0]

    def count(self, sql: str) -> int:
        return int(self.client.query(f"SELECT {sql}").result_rows[0][0])

    def rows(self, source: uuid.UUID) -> list[int]:
        """Rows and distinct rows of the observations of `source`, and what the labels stage would find of them by either id."""
        row = self.client.query(
            f"""
            WITH (SELECT groupArray(prediction_id) FROM internal.observations WHERE topic_id = '{source}') AS ids
            SELECT count(), uniqExact(prediction_id),
                (SELECT count() FROM internal.prediction_lookup WHERE startsWith(request_id, '{source}')),
                (SELECT count() FROM internal.request_lookup WHERE startsWith(request_id, '{source}'))
            FROM internal.observations WHERE topic_id = '{source}'
            """
        ).result_rows[0]
        return [int(value) for value in row]

    def committed(self, topic: str, partition: int = 0) -> TopicPartition:
        """Where the group `sink` stands, with its plan."""
        member = consumer(self.settings, "sink")
        found = member.committed([TopicPartition(topic, partition)], timeout=10)[0]
        member.close()
        return found

    def commit(self, topic: str, partition: int, offset: int, metadata: str = "") -> None:
        """Move the group, as a person would while no sink runs. Kafka allows it once the stopped member's session is over."""
        member = consumer(self.settings, "sink")

        def committed() -> bool:
            place = TopicPartition(topic, partition, offset, metadata)
            try:
                member.commit(offsets=[place], asynchronous=False)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_MEMBER_ID:
                    raise
                return False
            return True

        until(committed, "the group is empty")
        member.close()

    def end_offset(self, topic: str, partition: int = 0) -> int:
        member = consumer(self.settings, f"look-{uuid.uuid4()}")
        found = member.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
        member.close()
        assert found is not None
        return int(found[1])

    def alerts(self, subject: str) -> list[Alert]:
        """What reached ClickHouse's alerts about `subject`."""
        rows = self.client.query(
            f"SELECT event_id, model, at_ms, kind, severity, subject, version, message, evidence "
            f"FROM internal.alerts FINAL WHERE subject = '{subject}'"
        ).result_rows
        names = ("event_id", "model", "at_ms", "kind", "severity", "subject", "version", "message")
        return [Alert(**dict(zip(names, row, strict=False)), evidence=json.loads(row[-1])) for row in rows]

    def end(self) -> None:
        self.proxy.release()
        for sink in self.sinks:
            sink.kill()
        self.sinks.clear()
