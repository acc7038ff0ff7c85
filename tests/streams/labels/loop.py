"""What stands around the labels stage in these tests: who predicts, who sinks, who gives feedback; each step by hand."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from confluent_kafka import KafkaError, Message, TopicPartition

from runtime.headers import pairs, text
from runtime.kafka import consumer, producer
from runtime.offsets import or_start, told
from runtime.positions import EndOffsets
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer
from schemas import dead_letters
from schemas.arrow import OBSERVATIONS, decode_batch, encode_batch
from schemas.feedback import Feedback
from schemas.identity import prediction_id
from schemas.topics import DEAD_LETTERS
from schemas.topics import OBSERVATIONS as OBSERVATIONS_TOPIC
from schemas.topics import OUTCOMES as OUTCOMES_TOPIC
from tests.reader import Reader
from warehouse.client import connect

MODEL = "colour"
CLASSES = ("blue", "red")
SPEC = """
name = "colour"
task = "binary"
classes = ["blue", "red"]
module = "model:Unused"
[features]
x = { type = "float" }
[serve]
partitions = 2
[feedback]
orphan_after_sec = 1
"""
REQUEST_TOPIC_ID = uuid.uuid4()
TO_THE_END: dict[str, Any] = {"enable.partition.eof": True}

Headers = dict[str, str]


class Loop:
    """Gateway, sink and producers in one hand."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clickhouse: Client = connect(
            settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password
        )
        self._gateway = TransactionalProducer(settings, f"test-gateway-{uuid.uuid4()}")
        self._producer = producer(settings)
        self._offsets = itertools.count()
        self._ends = EndOffsets(settings)
        self._outcomes = Reader(settings, OUTCOMES_TOPIC.name, from_start=True)
        self._letters = Reader(settings, DEAD_LETTERS.name, from_start=True)
        self._rows: dict[bytes, list[dict[str, Any]]] = {}
        """Outcomes so far, by prediction id."""
        self._decoded = 0
        """Records that they are from."""
        self._sunk = {
            OBSERVATIONS_TOPIC.name: "internal.observations",
            OUTCOMES_TOPIC.name: "internal.outcomes",
        }

    def predict(
        self,
        scores: Sequence[float],
        request_ids: Sequence[str] = (),
        requested_ms: int | None = None,
        arms: Sequence[str] = ("champion",),
        partition: int = 0,
    ) -> list[str]:
        """Committed observations with the probability of red in `scores`, each answered by every one of `arms`; their ids."""
        at_ms = time.time_ns() // 1_000_000 if requested_ms is None else requested_ms
        offsets = [next(self._offsets) for _ in scores]
        ids = [prediction_id(at_ms, REQUEST_TOPIC_ID, partition, offset) for offset in offsets]
        rows = [
            {
                "prediction_id": id_.bytes,
                "request_id": request_ids[row] if request_ids else "",
                "model": MODEL,
                "entity": "someone",
                "role": "shadow" if place else "live",
                "arm": arm,
                "version": f"1.{place}",
                "propensity": 1.0,
                "route_revision": 1,
                "topic_id": REQUEST_TOPIC_ID.bytes,
                "partition": partition,
                "offset": offset,
                "row": 0,
                "status": "answered",
                "reason": "",
                "requested_at": at_ms,
                "observed_at": at_ms + 5,
                "label": CLASSES[red > 0.5],
                "score": max(red, 1 - red),
                "scores": [1 - red, red],
                "numbers": [red],
                "texts": [],
                "segments": ["x=1"],
                "infer_ms": 1.0,
                "trace_id": "",
                "attempt": 0,
            }
            for row, (id_, offset, red) in enumerate(zip(ids, offsets, scores, strict=True))
            for place, arm in enumerate(arms)
        ]
        batch = pa.RecordBatch.from_pylist(rows, schema=OBSERVATIONS)
        self._gateway.begin()
        self._gateway.produce(
            OBSERVATIONS_TOPIC.name, encode_batch(batch), f"requests.{MODEL}:{partition}".encode()
        )
        self._gateway.commit()
        return [str(id_) for id_ in ids]

    def sink(self) -> int:
        """Bring what is new of observations and outcomes into ClickHouse, confirm it, and return the number of records."""
        group = consumer(self.settings, "sink")
        places = or_start(group, told(group, [TopicPartition(*place) for place in self._ends.of(self._sunk)]))
        messages = self._read_on(places)
        confirmed: dict[tuple[str, int], int] = {}
        for message in messages:
            topic, partition = message.topic() or "", message.partition() or 0
            table = pa.Table.from_batches([decode_batch(message.value() or b"")])
            self.clickhouse.insert_arrow(self._sunk[topic], table, database="internal")
            confirmed[topic, partition] = (message.offset() or 0) + 1
        if confirmed:
            offsets = [TopicPartition(*place, offset) for place, offset in confirmed.items()]
            group.commit(offsets=offsets, asynchronous=False)
        group.close()
        return len(messages)

    def tell(
        self, value: bytes, key: bytes = b"someone", at_ms: int | None = None, flush: bool = True
    ) -> None:
        """One feedback record, whatever it holds."""
        self._producer.produce(
            f"feedback.{MODEL}", value, key, timestamp=time.time_ns() // 1_000_000 if at_ms is None else at_ms
        )
        if flush:
            self.flush()

    def flush(self) -> None:
        """What was told is on the broker."""
        assert self._producer.flush(10) == 0

    def label(self, truth: str, **fields: Any) -> None:
        """A label."""
        self.tell(msgspec.json.encode(Feedback(kind="label", value=truth, **fields)))

    def _read_on(self, places: list[TopicPartition]) -> list[Message]:
        """What is committed from `places` on. A commit returns before its markers are written: it is read to the ends of now."""
        ends = self._ends.of({place.topic for place in places})
        unread = {place for place in ((p.topic, p.partition) for p in places) if ends[place]}
        reader = consumer(self.settings, f"reader-{uuid.uuid4()}", **TO_THE_END)
        reader.assign(places)
        found = []
        while unread:
            message = reader.poll(10)
            assert message is not None, unread
            error = message.error()
            if error is None:
                found.append(message)
                continue
            assert error.code() == KafkaError._PARTITION_EOF, error
            place = (message.topic() or "", message.partition() or 0)
            if (message.offset() or 0) >= ends[place]:
                unread.discard(place)
        reader.close()
        return found

    def end_of(self, topic: str) -> int:
        """Sum of the topic's end offsets."""
        return sum(self._ends.of([topic]).values())

    def outcomes(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """All outcome rows of these predictions, from the topic itself, by prediction (in order of `ids`), revision and arm."""
        for message in self._outcomes.read()[self._decoded :]:
            for row in decode_batch(message.value() or b"").to_pylist():
                self._rows.setdefault(row["prediction_id"], []).append(row)
        self._decoded = len(self._outcomes.messages)
        return [
            row
            for id_ in ids
            for row in sorted(
                self._rows.get(uuid.UUID(id_).bytes, []), key=lambda row: (row["revision"], row["arm"])
            )
        ]

    def letters(self, value: bytes) -> list[Headers]:
        """Headers of the dead letters that hold `value`."""
        found = []
        for message in self._letters.read():
            headers = pairs(message.headers())
            if message.value() == value and text(headers, dead_letters.STAGE) == "labels":
                found.append({name: text(headers, name) for name, _ in headers})
        return found
