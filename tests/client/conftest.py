"""A real broker with the topics of one model, and somebody who answers its requests the way the gateway does."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import msgspec
import pyarrow as pa
import pytest
from confluent_kafka import Message

from compose.setup import wanted_topics
from runtime.headers import pairs, text
from runtime.kafka import admin, consumer, create_topics, topic_ids
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer
from schemas.arrow import PREDICTIONS, decode_batch, encode_batch
from schemas.formats import ARROW_TYPE
from schemas.identity import prediction_id
from schemas.requests import CONTENT_TYPE, Prediction, Rejected
from schemas.spec import decode_spec
from tests.services import broker
from tests.waiting import until
from tidemill import Client

MODEL = "colour"
SPEC = """
name = "colour"
task = "binary"
classes = ["blue", "red"]
module = "model:Unused"
[features]
x = { type = "float" }
[serve]
partitions = 3
"""


@pytest.fixture(scope="package")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("client")
    (folder / "models" / MODEL).mkdir(parents=True)
    (folder / "models" / MODEL / "model.toml").write_text(SPEC)
    with broker(folder) as address:
        settings = Settings(kafka_bootstrap=address, models_dir=folder / "models")
        topics = wanted_topics({MODEL: decode_spec(SPEC, "SPEC")})
        create_topics(admin(settings), topics)
        # A broker takes a moment to see what its controller has created.
        names = [name for name, _, _ in topics]
        until(lambda: len(topic_ids(admin(settings), names)) == len(names), "the broker sees the topics")
        yield settings


class Answerer(threading.Thread):
    """Answers every object with a feature `x`, red above 0.5, and rejects what is none; ids as the gateway makes them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self._topic = f"requests.{MODEL}"
        self._topic_id = topic_ids(admin(settings), [self._topic])[self._topic]
        self._consumer = consumer(settings, "answerer")
        self._consumer.subscribe([self._topic])
        self._producer = TransactionalProducer(settings, "answerer")
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.is_set():
            first = self._consumer.poll(0.05)
            if first is None:
                continue
            self._producer.begin()
            for message in [first, *self._consumer.consume(1000, 0.0)]:
                kind = text(pairs(message.headers()), CONTENT_TYPE)
                self._producer.produce(
                    f"predictions.{MODEL}",
                    self._answers(message) if kind == ARROW_TYPE else msgspec.json.encode(self._answer(message)),
                    message.key(), [(CONTENT_TYPE, kind.encode())], message.partition() or 0,
                )  # fmt: skip
            self._producer.commit()
        self._consumer.close()

    def end(self) -> None:
        self._ended.set()
        self.join()

    def _id(self, message: Message, row: int = 0) -> str:
        place = message.partition() or 0, message.offset() or 0
        return str(prediction_id(message.timestamp()[1], self._topic_id, *place, row))

    def _answers(self, message: Message) -> bytes:
        rows = [
            {
                "prediction_id": self._id(message, number), "request_id": row["request_id"], "model": MODEL, "status": "answered",
                "version": "1.0", "arm": "champion", "propensity": 1.0, "label": "red" if row["x"] > 0.5 else "blue",
                "score": row["x"], "scores": [1 - row["x"], row["x"]], "reason": "", "field": "", "expected": "",
                "message": "", "attempt": 0,
            }
            for number, row in enumerate(decode_batch(message.value() or b"").to_pylist())
        ]  # fmt: skip
        return encode_batch(pa.RecordBatch.from_pylist(rows, PREDICTIONS))

    def _answer(self, message: Message) -> Prediction:
        id_, value = self._id(message), message.value() or b""
        try:
            request = msgspec.json.decode(value)
            features = request.get("features", request)
            score = float(features["x"])
        except (msgspec.DecodeError, KeyError) as error:
            rejected = Rejected(reason="undecodable", message=f"faulty: {type(error).__name__}")
            return Prediction(prediction_id=id_, model=MODEL, rejected=rejected)
        return Prediction(
            prediction_id=id_, model=MODEL, request_id=request.get("request_id", ""), version="1.0",
            label="red" if score > 0.5 else "blue", score=max(score, 1 - score),
        )  # fmt: skip


@pytest.fixture(scope="package")
def answerer(settings: Settings) -> Iterator[Answerer]:
    answerer = Answerer(settings)
    answerer.start()
    yield answerer
    answerer.end()


@pytest.fixture
def client(settings: Settings, answerer: Answerer) -> Iterator[Client]:
    with Client(settings) as client:
        yield client
