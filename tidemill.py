"""Tidemill's client: publish requests and feedback, read predictions.

>>> from tidemill import Client
>>> with Client(bootstrap="127.0.0.1:9092") as client:                                        # doctest: +SKIP
...     answer = client.ask("electricity", {"period": 0.5, "nswprice": 0.06}, key="nsw")
...     print(answer.label, answer.score)
...     client.feedback("electricity", prediction_id=answer.prediction_id, label="up", key="nsw")

Keys decide the partition, and with it the order: give feedback the key of the request that it speaks of.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from runtime.headers import Headers, pairs, text
from runtime.kafka import REQUEST_TIMEOUT_SEC, admin, consumer, judge, producer, topic_ids
from runtime.settings import Settings, load_settings
from runtime.telemetry import current_traceparent, span, tracing
from schemas.arrow import decode_batch, encode_batch
from schemas.errors import Outage, UnknownModel, UserError
from schemas.feedback import Feedback, Kind
from schemas.formats import ARROW_BYTES, ARROW_ROWS, ARROW_TYPE, format_of
from schemas.identity import prediction_id
from schemas.requests import CONTENT_TYPE, TRACEPARENT, Prediction, Rejected
from schemas.topics import FEEDBACK, PREDICTIONS, REQUESTS, Topic

__all__ = ["Answer", "Client", "Prediction", "Predictions", "Sent", "SentBatch"]

Key: TypeAlias = str | bytes | None
_BATCH: Final = 2000


class Client:
    """Publishes to one deployment and reads its predictions. Thread-safe, except for the readers it gives out.

    `settings` default to the `TIDEMILL_*` environment variables; `bootstrap` (`host:port`) names the broker alone. Records are sent in
    the background: `flush`, or leaving the `with` block, waits for them and raises if one was not taken.
    """

    def __init__(self, settings: Settings | None = None, *, bootstrap: str = "") -> None:
        if settings is None:
            settings = Settings(kafka_bootstrap=bootstrap) if bootstrap else load_settings()
        self._settings = settings
        self._tracer = tracing(settings, "client")
        self._topics: dict[str, int] = {}
        self._topic_ids: dict[str, uuid.UUID] = {}
        self._failure: KafkaError | None = None
        # What the topic would refuse later is refused at once.
        self.producer: Producer = producer(settings, **{"message.max.bytes": REQUESTS.max_message_bytes})
        """The Kafka producer beneath, for records that are encoded already: `client.producer.produce(topic, value, key)`."""

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def produce(
        self, model: str, features: Mapping[str, object] | bytes, *, key: Key = None, request_id: str = "",
        timestamp_ms: int = 0, traceparent: str = "",
    ) -> Sent:  # fmt: skip
        """Send one request. `None` and NaN (which JSON cannot write) mean that a feature is missing; bytes are sent as they are.

        `key` is the entity (tenant, session, account): it keeps to one partition and, in a rollout, to one arm. `request_id` is your own
        id, by which feedback may name the request. `timestamp_ms` (since 1970, UTC) is now by default.

        Raises:
            UnknownModel: nothing serves that model.
            UserError: a feature is no JSON value, or the request is larger than the topic takes.
        """
        if request_id and isinstance(features, bytes):
            raise UserError("request_id: bytes are sent as they are, write it into them")
        value = features if isinstance(features, bytes) else _encode(
            {"features": features, "request_id": request_id} if request_id else features
        )  # fmt: skip
        topic = self._topic(REQUESTS, model)
        sent = Sent(self._topic_id(topic))
        self._send(topic, model, value, key, timestamp_ms, traceparent, sent)
        return sent

    def produce_batch(
        self, model: str, columns: pa.Table | pa.RecordBatch | Mapping[str, Any], *, key: Key = None,
        timestamp_ms: int = 0, rows_per_record: int = 1024,
    ) -> SentBatch:  # fmt: skip
        """Send many rows in few records: the way for volume, since what a record costs is paid once for all of its rows.

        `columns` are a table, or name → array (NumPy, Arrow, a list), all of one length: the features, and if you like `request_id`. Nulls
        mean that a feature is missing, as does NaN in a number that may be. `key` is the entity of all rows: they keep to one partition and
        to one arm; without it rows are spread. Each row has a prediction of its own; `docs/events.md` says which types a column may have.

        >>> batch = client.produce_batch("electricity", {"period": [0.1, 0.2], "nswprice": [0.05, 0.06]})    # doctest: +SKIP
        >>> batch.rows                                                                                      # doctest: +SKIP
        2

        Raises:
            UnknownModel: nothing serves that model.
            UserError: the columns make no table, or a row is larger than a record may be.
        """
        try:
            table = columns if isinstance(columns, pa.Table | pa.RecordBatch) else pa.table(dict(columns))
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise UserError(f"columns: not a table: {error}") from None
        topic = self._topic(REQUESTS, model)
        sent = SentBatch(self._topic_id(topic))
        if not table.num_rows:
            return sent
        # Half of the limit: what a slice of texts takes is known only about.
        fitting = ARROW_BYTES // 2 * table.num_rows // max(table.nbytes, 1)
        for batch in table.to_batches(max_chunksize=max(1, min(rows_per_record, fitting, ARROW_ROWS))):
            value = encode_batch(batch)
            if len(value) > ARROW_BYTES:
                raise UserError(
                    f"{batch.num_rows} rows take {len(value)} bytes, a record at most {ARROW_BYTES}"
                )
            place = sent.add(batch.num_rows)
            self._send(topic, model, value, key, timestamp_ms, sent=place, content_type=ARROW_TYPE)
        return sent

    def feedback(
        self, model: str, *, prediction_id: str = "", request_id: str = "",
        label: str | float | None = None, rating: int | None = None, thumb: Literal["up", "down"] | None = None,
        correction: str | float | None = None, comment: str | None = None,
        signal: tuple[str, str | float | bool] | None = None,
        key: Key = None, at_ms: int | None = None, feedback_id: str = "", source: str = "",
    ) -> None:  # fmt: skip
        """Say one thing about one prediction, which is named by its id or by the request's.

        `at_ms` is when it became known: of two labels the newer holds. Repeats with one `feedback_id` count once.

        >>> client.feedback("electricity", request_id="4711", label="up")                     # doctest: +SKIP
        >>> client.feedback("electricity", request_id="4711", signal=("dwell_sec", 12.5))     # doctest: +SKIP

        Raises:
            UnknownModel: nothing serves that model.
            UserError: not exactly one thing is said, or not about exactly one prediction.
        """
        kinds: dict[Kind, Any] = {
            "label": label, "rating": rating, "thumb": thumb, "correction": correction, "comment": comment,
            "signal": None if signal is None else signal[1],
        }  # fmt: skip
        said = [(kind, value) for kind, value in kinds.items() if value is not None]
        if len(said) != 1:
            raise UserError(f"feedback: expected exactly one of {', '.join(kinds)}, found {len(said)}")
        if bool(prediction_id) == bool(request_id):
            raise UserError("feedback: expected either prediction_id or request_id")
        ((kind, value),) = said
        record = Feedback(
            kind=kind, value=value, prediction_id=prediction_id, request_id=request_id, at_ms=at_ms,
            feedback_id=feedback_id, source=source, name=signal[0] if signal else "",
        )  # fmt: skip
        topic = self._topic(FEEDBACK, model)
        self._send(topic, model, _encode(record), key or prediction_id or request_id)

    def predictions(self, model: str, *, from_end: bool = True) -> Predictions:
        """A reader of the model's committed predictions: of those to come, or of all that are retained."""
        topic = self._topic(PREDICTIONS, model)
        return Predictions(self._settings, topic, self._topics[topic], from_end)

    def ask(
        self, model: str, features: Mapping[str, object] | bytes, *, key: Key = None, request_id: str = "",
        timeout_sec: float = 30.0,
    ) -> Prediction:  # fmt: skip
        """Send one request and wait for its answer or rejection.

        Raises:
            Outage: no answer within `timeout_sec`.
        """
        with self.predictions(model) as reader:
            sent = self.produce(model, features, key=key, request_id=request_id)
            self.flush()
            return reader.wait_for([sent.prediction_id], timeout_sec)[0]

    def flush(self, timeout_sec: float = 30.0) -> None:
        """Wait until everything sent so far is on the broker.

        Raises:
            Outage: something is not.
        """
        left = self.producer.flush(timeout_sec)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise Outage(f"a record was not delivered: {failure.str()}")
        if left:
            raise Outage(
                f"{left} records are not delivered to {self._settings.kafka_bootstrap} after {timeout_sec:.0f} s"
            )

    def _send(
        self, topic: str, model: str, value: bytes, key: Key, timestamp_ms: int = 0, traceparent: str = "",
        sent: Sent | None = None, content_type: str = "",
    ) -> None:  # fmt: skip
        with span(self._tracer, "produce", traceparent, topic=topic, model=model) as current:
            headers: Headers = current_traceparent(current)
            if not headers and traceparent:
                headers = [(TRACEPARENT, traceparent.encode())]
            if content_type:
                headers = [*headers, (CONTENT_TYPE, content_type.encode())]

            def delivered(error: KafkaError | None, message: Message) -> None:
                if error is not None:
                    self._failure = error
                elif sent is not None:
                    sent.place(message)

            while True:
                try:
                    self.producer.produce(
                        topic, value, key, on_delivery=delivered, timestamp=timestamp_ms, headers=headers
                    )
                except BufferError:
                    self.producer.poll(0.1)  # the queue is full: go no faster than the broker
                    continue
                except KafkaException as error:
                    if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                        raise UserError(f"{topic}: a record of {len(value)} bytes is too large") from None
                    raise Outage(f"{topic}: {error.args[0].str()}") from error
                self.producer.poll(0)
                return

    def _topic_id(self, topic: str) -> uuid.UUID:
        if topic not in self._topic_ids:
            self._topic_ids |= topic_ids(admin(self._settings), [topic])
        if topic not in self._topic_ids:
            raise Outage(f"the broker does not describe topic {topic} (yet)")
        return self._topic_ids[topic]

    def _topic(self, kind: Topic, model: str) -> str:
        """The model's topic, once it is known to exist."""
        topic = kind.for_model(model)
        if topic not in self._topics:
            try:
                found = self.producer.list_topics(timeout=REQUEST_TIMEOUT_SEC).topics
            except KafkaException as error:
                raise Outage(
                    f"no Kafka broker answers at {self._settings.kafka_bootstrap}: {error.args[0].str()}"
                ) from None
            self._topics = {name: len(metadata.partitions) for name, metadata in found.items()}
            if topic not in self._topics:
                prefix = kind.for_model("")
                models = sorted(name.removeprefix(prefix) for name in found if name.startswith(prefix))
                raise UnknownModel(
                    f"no model {model!r}: {self._settings.kafka_bootstrap} has no topic {topic}; "
                    f"expected one of {', '.join(models) or '(no model is set up there)'}"
                )
        return topic


class Sent:
    """A request that was sent. Its prediction has an id that follows from where the record lies, and so is known beforehand."""

    __slots__ = ("_place", "_topic_id")

    def __init__(self, topic_id: uuid.UUID) -> None:
        self._topic_id = topic_id
        self._place: tuple[int, int, int] | None = None

    def place(self, message: Message) -> None:
        """The broker has it; `message` says where."""
        self._place = message.timestamp()[1], message.partition() or 0, message.offset() or 0

    @property
    def prediction_id(self) -> str:
        """ "" until the broker has the record (`Client.flush`)."""
        return self.row_id(0)

    def row_id(self, row: int) -> str:
        """The prediction id of a row of the record; "" until the broker has it."""
        # Made when asked for: it costs more than sending the record did.
        if self._place is None:
            return ""
        timestamp_ms, partition, offset = self._place
        return str(prediction_id(timestamp_ms, self._topic_id, partition, offset, row))


class SentBatch:
    """Rows that were sent, in a few records."""

    __slots__ = ("_records", "_topic_id")

    def __init__(self, topic_id: uuid.UUID) -> None:
        self._topic_id = topic_id
        self._records: list[tuple[Sent, int]] = []

    def add(self, rows: int) -> Sent:
        """One more record."""
        sent = Sent(self._topic_id)
        self._records.append((sent, rows))
        return sent

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(rows for _, rows in self._records)

    @property
    def prediction_ids(self) -> list[str]:
        """The id that each row's prediction has, in the rows' order; "" until the broker has the record (`Client.flush`)."""
        return [sent.row_id(row) for sent, rows in self._records for row in range(rows)]


class Answer(NamedTuple):
    """A prediction as it was read."""

    prediction: Prediction
    requested_ms: int
    """The request record's timestamp, which the prediction's id holds."""
    read_ms: int
    """When this reader got it."""


class Predictions:
    """Reads committed predictions: iterate over it for ever, `read` what there is, or `wait_for` one. Not thread-safe."""

    def __init__(self, settings: Settings, topic: str, partitions: int, from_end: bool) -> None:
        self._topic = topic
        self._consumer = consumer(settings, f"client-{uuid.uuid4()}")
        places = [TopicPartition(topic, partition) for partition in range(partitions)]
        for place in places:
            low, high = self._consumer.get_watermark_offsets(place, timeout=REQUEST_TIMEOUT_SEC)
            place.offset = high if from_end else low
        self._consumer.assign(places)

    def __enter__(self) -> Predictions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Prediction]:
        while True:
            for answer in self.read(1.0):
                yield answer.prediction

    def read(self, timeout_sec: float = 0.0) -> list[Answer]:
        """What there is, in order within each key; waits up to `timeout_sec` for the first."""
        first = self._consumer.poll(timeout_sec)
        if first is None:
            return []
        messages: list[Message] = [first, *self._consumer.consume(_BATCH, 0.0)]
        read_ms = time.time_ns() // 1_000_000
        answers = []
        for message in messages:
            error = message.error()
            if error is None:
                for prediction in _predictions(message):
                    requested_ms = int(prediction.prediction_id[:8] + prediction.prediction_id[9:13], 16)
                    answers.append(Answer(prediction, requested_ms, read_ms))
                continue
            try:
                judge(error, self._topic)
            except KafkaException:
                raise Outage(f"{self._topic}: {error.str()}") from None
        return answers

    def wait_for(self, prediction_ids: Sequence[str], timeout_sec: float = 30.0) -> list[Prediction]:
        """The predictions of these ids, in their order; others are passed over.

        Raises:
            Outage: one is missing after `timeout_sec`.
        """
        deadline = time.monotonic() + timeout_sec
        found: dict[str, Prediction] = {}
        missing = set(prediction_ids)
        while missing:
            left_sec = deadline - time.monotonic()
            if left_sec <= 0:
                raise Outage(
                    f"{self._topic}: {len(missing)} of {len(prediction_ids)} predictions are not there after "
                    f"{timeout_sec:g} s"
                )
            for answer in self.read(left_sec):
                if answer.prediction.prediction_id in missing:
                    missing.discard(answer.prediction.prediction_id)
                    found[answer.prediction.prediction_id] = answer.prediction
        return [found[each] for each in prediction_ids]

    def close(self) -> None:
        """Let go."""
        self._consumer.close()


_json: Final = msgspec.json.Decoder(Prediction)
_msgpack: Final = msgspec.msgpack.Decoder(Prediction)


def _predictions(message: Message) -> list[Prediction]:
    """The predictions in a record, whatever its format."""
    value = message.value() or b""
    kind = format_of(text(pairs(message.headers()), CONTENT_TYPE))
    if kind == "arrow":
        return [_of_row(row) for row in decode_batch(value).to_pylist()]
    return [_msgpack.decode(value) if kind == "msgpack" else _json.decode(value)]


def _of_row(row: dict[str, Any]) -> Prediction:
    """A row of the answer to an Arrow request. Its scores are in the order of the spec's classes, which it does not name."""
    rejected = None
    if row["status"] == "rejected":
        rejected = Rejected(
            reason=row["reason"], field=row["field"], expected=row["expected"], message=row["message"]
        )
    return Prediction(
        prediction_id=row["prediction_id"], model=row["model"], request_id=row["request_id"], version=row["version"],
        label=row["label"], score=None if rejected else row["score"], rejected=rejected, attempt=row["attempt"],
    )  # fmt: skip


def _encode(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except TypeError as error:
        raise UserError(f"not a JSON value: {error}") from None
