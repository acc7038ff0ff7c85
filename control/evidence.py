"""What the audit reads: requests, redrives and predictions from Kafka, observations and dead letters from ClickHouse."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client
from confluent_kafka import Message, TopicPartition

from control.bijection import (
    Ids,
    Ints,
    Observations,
    Predictions,
    Requests,
    ids_of,
    ids_of_texts,
    with_attempts,
)  # fmt: skip
from runtime.dead_letters import own_place, redriven_from
from runtime.headers import pairs, text
from runtime.kafka import REQUEST_TIMEOUT_SEC, admin, consumer, topic_ids
from runtime.positions import SINK_GROUP, Ends, Place
from runtime.reader import TopicReader
from runtime.settings import Settings
from schemas import arrow
from schemas.dead_letters import MAX_ATTEMPT, Origin
from schemas.errors import Rejection, UnknownModel
from schemas.events import Arm
from schemas.formats import arrow_rows_limit, format_of, request_rows
from schemas.identity import prediction_ids
from schemas.requests import CONTENT_TYPE
from schemas.spec import ModelSpec
from schemas.topics import DEAD_LETTERS, OBSERVATIONS, PREDICTIONS, REDRIVES, REQUESTS

T = TypeVar("T")
GATEWAY_GROUP: Final = "gateway"
POLL_SEC: Final = 0.1


class Asked(NamedTuple):
    """Requests of one topic, and where they lie."""

    topic: str
    requests: Requests
    topic_id: uuid.UUID
    spans: dict[int, tuple[int, int]]
    """Partition → offset of its first request and the offset after its last."""
    truncated: list[int]
    """Partitions whose start Kafka has dropped."""


# ── Kafka ──


def requests_of(settings: Settings, reader: TopicReader, spec: ModelSpec) -> Asked:
    """Ids of all committed request rows."""
    topic = REQUESTS.for_model(spec.name)
    topic_id = topic_ids(admin(settings), [topic]).get(topic)
    if topic_id is None:
        raise UnknownModel(f"{spec.name}: there is no topic {topic} yet; start the stack first")

    def ids(partition: int, offsets: Ints, rows: Ints, stamps: list[int]) -> Ids:
        each = np.array(stamps, dtype=np.int64)
        return ids_of(
            prediction_ids(
                np.repeat(each, rows),
                [(topic_id, partition, int(rows.sum()))],
                np.repeat(offsets, rows),
                _within(rows),
            )
        )

    return _asked(reader, topic, topic_id, spec, lambda message: int(message.timestamp()[1]), ids)


def redriven_of(settings: Settings, reader: TopicReader, spec: ModelSpec) -> Asked:
    """Ids with attempts of all rows of committed redrives: those of the originals, or their own where they do not say what they were."""
    topic, original = REDRIVES.for_model(spec.name), REQUESTS.for_model(spec.name)
    topic_id = topic_ids(admin(settings), [topic]).get(topic)
    if topic_id is None:
        nothing = Requests(np.zeros(0, "S17"), np.zeros(0, np.int64), np.zeros(0, np.int64))
        return Asked(topic, nothing, uuid.UUID(int=0), {}, [])

    def ids(_partition: int, _offsets: Ints, rows: Ints, origins: list[Origin]) -> Ids:
        stamps, places = (
            np.array([(origin.timestamp_ms, origin.offset) for origin in origins], np.int64).reshape(-1, 2).T
        )
        runs = [
            (origin.topic_id, origin.partition, count)
            for origin, count in zip(origins, rows.tolist(), strict=True)
        ]
        found = prediction_ids(np.repeat(stamps, rows), runs, np.repeat(places, rows), _within(rows))
        attempts = np.array([origin.attempt for origin in origins], dtype=np.int64)
        return with_attempts(ids_of(found), np.repeat(attempts, rows))

    return _asked(reader, topic, topic_id, spec, lambda message: _origin(message, topic_id, original), ids)


def _origin(message: Message, topic_id: uuid.UUID, original: str) -> Origin:
    try:
        return redriven_from(message, original)
    except Rejection:
        return own_place(message, topic_id)


def _asked(
    reader: TopicReader,
    topic: str,
    topic_id: uuid.UUID,
    spec: ModelSpec,
    keep: Callable[[Message], T],
    ids: Callable[[int, Ints, Ints, list[T]], Ids],
) -> Asked:
    """All rows of the committed records of `topic`; `ids` makes their ids of a partition's offsets, rows a record, and what `keep` takes
    of each record."""
    limit_rows = arrow_rows_limit(spec)
    places = reader.places(topic)
    lows = {partition: bounds.first for (_, partition), bounds in reader.bounds(places).items()}
    kept: dict[int, list[T]] = {p: [] for p in lows}
    seen: dict[int, list[int]] = {p: [] for p in lows}
    counted: dict[int, list[int]] = {p: [] for p in lows}
    for message in reader.whole(places):
        partition = message.partition() or 0
        seen[partition].append(message.offset() or 0)
        kept[partition].append(keep(message))
        headers = message.headers()
        kind = text(pairs(headers), CONTENT_TYPE) if headers else ""
        counted[partition].append(request_rows(message.value(), kind, limit_rows))
    offsets = {p: np.array(found, dtype=np.int64) for p, found in seen.items()}
    rows = {p: np.array(found, dtype=np.int64) for p, found in counted.items()}
    return Asked(
        topic,
        Requests(
            np.concatenate([ids(p, offsets[p], rows[p], kept[p]) for p in lows]),
            np.concatenate([np.full(int(rows[p].sum()), p, dtype=np.int64) for p in lows]),
            np.concatenate([np.repeat(offsets[p], rows[p]) for p in lows]),
        ),
        topic_id,
        {p: (int(at[0]), int(at[-1]) + 1) for p, at in offsets.items() if len(at)},
        [p for p, low in lows.items() if low > 0],
    )


def _within(rows: Ints) -> Ints:
    """The number of each row within its record.

    >>> _within(np.array([1, 3, 2])).tolist()
    [0, 0, 1, 2, 0, 1]
    """
    return np.arange(int(rows.sum())) - np.repeat(np.cumsum(rows) - rows, rows)


class _Answer(msgspec.Struct, gc=False):
    """What the audit needs of a prediction."""

    prediction_id: str = ""
    rejected: dict[str, object] | None = None
    attempt: int = 0


_ANSWERED: Final = arrow.part_of(arrow.PREDICTIONS, ["status", "prediction_id", "attempt"])
_JSON: Final = msgspec.json.Decoder(_Answer)
_MSGPACK: Final = msgspec.msgpack.Decoder(_Answer)


def _answers(message: Message) -> tuple[list[str], list[bool], list[int]]:
    """Prediction ids, whether they were answered, and their attempts, of the rows of a record of predictions."""
    value = message.value() or b""
    try:
        kind = format_of(text(pairs(message.headers()), CONTENT_TYPE))
        if kind == "arrow":
            batch = arrow.decode_batch(value, _ANSWERED)
            answered = pc.equal(batch.column("status"), "answered")
            ids = batch.column("prediction_id").to_pylist()
            return ids, answered.to_pylist(), batch.column("attempt").to_pylist()
        answer = _MSGPACK.decode(value) if kind == "msgpack" else _JSON.decode(value)
    except (msgspec.DecodeError, Rejection):
        answer = _Answer()  # somebody else wrote here: an answer to nothing
    attempt = answer.attempt if 0 <= answer.attempt <= MAX_ATTEMPT else 0
    return [answer.prediction_id], [answer.rejected is None], [attempt]


def predictions_of(reader: TopicReader, model: str) -> Predictions:
    texts: dict[int, list[str]] = {}
    answered: dict[int, list[bool]] = {}
    attempts: dict[int, list[int]] = {}
    places = reader.places(PREDICTIONS.for_model(model))
    for _, partition in places:
        texts[partition], answered[partition], attempts[partition] = [], [], []
    for message in reader.whole(places):
        ids, flags, tries = _answers(message)
        partition = message.partition() or 0
        texts[partition] += ids
        answered[partition] += flags
        attempts[partition] += tries
    return Predictions(
        np.concatenate([ids_of_texts(texts[p]) for p in texts]),
        np.concatenate([np.full(len(texts[p]), p, dtype=np.int64) for p in texts]),
        np.concatenate([np.array(answered[p], dtype=bool) for p in texts]),
        np.concatenate([np.array(attempts[p], dtype=np.int64) for p in texts]),
    )


def gateway_passed(settings: Settings, asked: Asked, deadline: float) -> Any:
    """Which requests the gateway has committed, after waiting for all of them."""
    topic = asked.topic
    ends = {(topic, partition): end for partition, (_, end) in asked.spans.items()}
    committed = _wait_committed(settings, GATEWAY_GROUP, ends, deadline)
    limit = np.zeros(max((p for p in asked.spans), default=0) + 1, dtype=np.int64)
    for (_, partition), offset in committed.items():
        limit[partition] = offset
    requests = asked.requests
    return requests.offsets < limit[requests.partitions] if len(requests.ids) else np.zeros(0, dtype=bool)


def sink_caught_up(settings: Settings, reader: TopicReader, deadline: float) -> bool:
    """Whether the sink has confirmed all observations and dead letters that are there now."""
    places = [place for topic in (OBSERVATIONS.name, DEAD_LETTERS.name) for place in reader.places(topic)]
    ends = {place: bounds.end for place, bounds in reader.bounds(places).items()}
    committed = _wait_committed(settings, SINK_GROUP, ends, deadline)
    return all(committed[place] >= end for place, end in ends.items())


def _wait_committed(settings: Settings, group: str, ends: Ends, deadline: float) -> dict[Place, int]:
    """The group's offsets, once they have reached `ends` or the deadline has passed. The group is asked, never joined."""
    if not ends:
        return {}
    member = consumer(settings, group)
    try:
        while True:
            found = member.committed([TopicPartition(*place) for place in ends], timeout=REQUEST_TIMEOUT_SEC)
            offsets = {(place.topic, place.partition): max(place.offset, 0) for place in found}
            if all(offsets[place] >= end for place, end in ends.items()) or time.monotonic() >= deadline:
                return offsets
            time.sleep(POLL_SEC)
    finally:
        member.close()


# ── ClickHouse ──


def observations_of(client: Client, model: str, asked: Asked, again: Asked) -> tuple[Observations, list[str]]:
    """The model's observation rows of the retained requests and of all redrives, and the arms' names by code."""
    spans = " OR ".join(
        f"(partition = {partition} AND offset >= {first} AND offset < {end})"
        for partition, (first, end) in asked.spans.items()
    )
    sql = f"""
        SELECT prediction_id, role = 'live' AS live, status = 'answered' AS answered, toString(arm) AS arm, route_revision, attempt
        FROM internal.observations
        WHERE model = {{model:String}} AND (
            (topic_id = {{topic_id:UUID}} AND ({spans or "0"})) OR topic_id = {{redrives_id:UUID}} OR attempt > 0)
    """
    found = client.query_arrow(
        sql,
        parameters={"model": model, "topic_id": str(asked.topic_id), "redrives_id": str(again.topic_id)},
        use_strings=True,
    ).combine_chunks()
    arms = pc.dictionary_encode(found["arm"]).combine_chunks()
    if isinstance(arms, pa.ChunkedArray):
        arms = arms.chunk(0) if arms.num_chunks else pa.array([], pa.string()).dictionary_encode()
    raw = b"".join(_id_bytes(chunk) for chunk in found["prediction_id"].chunks)
    rows = Observations(
        ids_of(raw),
        found["live"].to_numpy().astype(bool),
        found["answered"].to_numpy().astype(bool),
        arms.indices.to_numpy(zero_copy_only=False).astype(np.int64),
        found["route_revision"].to_numpy().astype(np.int64),
        found["attempt"].to_numpy().astype(np.int64),
    )
    return rows, arms.dictionary.to_pylist()


def _id_bytes(chunk: Any) -> bytes:
    """A UUID column's bytes: Arrow's extension type over 16-byte values, without nulls."""
    storage = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
    data = storage.buffers()[1].to_pybytes()
    start = storage.offset * 16
    return bytes(data[start : start + len(storage) * 16])


def shadow_routes(client: Client, model: str, arms: list[str]) -> dict[int, list[int]]:
    """Revision → codes of the shadow arms that copy all live traffic."""
    rows = client.query(
        "SELECT revision, arms FROM internal.routes FINAL WHERE model = {model:String}",
        parameters={"model": model},
    ).result_rows
    code = {name: i for i, name in enumerate(arms)}
    expected: dict[int, list[int]] = {}
    for revision, listed in rows:
        shadows = [
            arm
            for arm in msgspec.json.decode(listed, type=list[Arm])
            if arm.role == "shadow" and arm.weight >= 1
        ]
        if shadows:
            # An arm that no row names owes all of its copies: a code that nothing has.
            expected[int(revision)] = [code.get(arm.name, -1) for arm in shadows]
    return expected


def dead_letters_of(client: Client, model: str, topic_id: uuid.UUID) -> tuple[int, int]:
    """Dead letters of the model's requests, and how many of them are there twice."""
    row = client.query(
        """
        SELECT count(), count() - uniqExact(stage, source_partition, source_offset, attempt) FROM internal.dead_letters
        WHERE model = {model:String} AND source_topic_id = {topic_id:UUID}
        """,
        parameters={"model": model, "topic_id": str(topic_id)},
    ).result_rows[0]
    return int(row[0]), int(row[1])
