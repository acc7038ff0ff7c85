"""The audit: proves over what Kafka still retains that nothing is missing and nothing is counted twice.

Per model it reads every committed request up to the end of the topic as it stands, computes the ids its rows must have, waits until the gateway has
answered them and the sink has inserted them, and compares them with `predictions.<model>` and with `internal.observations`.
It believes nothing that the stages say of themselves but how far they have come.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from control.bijection import (
    Fault,
    Observations,
    Predictions,
    Requests,
    expired,
    fault,
    ids_of,
    ids_of_texts,
    locate,
    misordered,
    shadow_duplicates,
    shadow_missing,
    surplus,
    times,
)  # fmt: skip
from runtime.kafka import REQUEST_TIMEOUT_SEC, admin, consumer, topic_ids
from runtime.settings import Settings
from schemas.errors import Outage, UnknownModel
from schemas.events import Arm
from schemas.identity import prediction_ids
from schemas.spec import load_specs
from schemas.topics import DEAD_LETTERS, OBSERVATIONS, PREDICTIONS, REQUESTS
from warehouse.client import connect, mapped

GATEWAY_GROUP: Final = "gateway"
SINK_GROUP: Final = "sink"
POLL_SEC: Final = 0.1
READ_TIMEOUT_SEC: Final = 60.0
_BATCH: Final = 10_000


class ModelAudit(msgspec.Struct, frozen=True, kw_only=True):
    """One model's account, in request rows."""

    model: str
    requests: int
    answered: int
    rejected: int
    in_flight: int
    """Not answered or not visible yet, by stages that had not caught up when the waiting ended."""
    missing: int
    """Requests that the gateway has passed, without an answer or rejection."""
    duplicated: int
    """Answers beyond the first."""
    unrequested: int
    """Answers to nothing that was asked."""
    misordered: int
    """Answers in another partition than their request, or out of its order."""
    observations_live: int
    observations_missing: int
    observations_duplicated: int
    observations_unrequested: int
    torn: int
    """Answer and observation disagree on whether the request was answered or rejected."""
    observations_shadow: int
    shadow_duplicated: int
    shadow_missing: int
    """Copies that a shadow arm owes. No fault: the gateway leaves out a shadow that does not answer in time."""
    dead_letters: int
    dead_letters_duplicated: int
    examples: dict[str, list[str]]
    """Fault → some prediction ids."""

    @property
    def faults(self) -> int:
        """What must be zero."""
        return sum(getattr(self, name) for name in FAULTS)

    @property
    def ok(self) -> bool:
        """The bijection holds, and nothing is in flight that could still break it."""
        return self.faults == 0 and self.in_flight == 0


FAULTS: Final = (
    "missing", "duplicated", "unrequested", "misordered", "observations_missing", "observations_duplicated", "observations_unrequested",
    "torn", "shadow_duplicated", "dead_letters_duplicated",
)  # fmt: skip


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """The accounts of all audited models."""

    ok: bool
    took_sec: float
    models: list[ModelAudit]


def audit(settings: Settings, models: list[str] | None = None, wait_sec: float = 10.0) -> AuditReport:
    """Audit `models` (all of them by default), waiting up to `wait_sec` for the stages to catch up with what was asked before.

    Raises:
        UnknownModel: there is no spec of that name, or it has no topics yet.
        Outage: Kafka or ClickHouse is away.
    """
    started = time.monotonic()
    known = load_specs(settings.models_dir)
    for name in models or []:
        if name not in known:
            raise UnknownModel(
                f"no model {name!r}: expected one of {', '.join(known) or 'none, there is no spec'}"
            )
    client = connect(settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password)
    overrides: dict[str, Any] = {"enable.partition.eof": True}
    reader = consumer(settings, f"audit-{uuid.uuid4()}", **overrides)
    try:
        deadline = started + wait_sec
        accounts = [_account(settings, client, reader, name, deadline) for name in models or known]
    except KafkaException as error:
        raise Outage(f"Kafka: {error.args[0].str()}") from error
    except ClickHouseError as error:
        raise mapped(error) from error
    finally:
        reader.close()
        client.close()
    return AuditReport(
        ok=all(account.ok for account in accounts),
        took_sec=round(time.monotonic() - started, 3),
        models=accounts,
    )


class _Asked(NamedTuple):
    """The requests, and where they lie."""

    requests: Requests
    topic_id: uuid.UUID
    spans: dict[int, tuple[int, int]]
    """Partition → offset of its first request and the offset after its last."""
    truncated: list[int]
    """Partitions whose start Kafka has dropped."""


def _account(settings: Settings, client: Client, reader: Consumer, model: str, deadline: float) -> ModelAudit:
    asked = _requests(settings, reader, model)
    requests, n = asked.requests, len(asked.requests.ids)
    passed = _gateway_passed(settings, reader, model, asked, deadline)
    predictions = _predictions(reader, model)
    visible = _sink_caught_up(settings, reader, deadline)
    observations, arms = _observations(client, model, asked)

    answers = locate(requests, predictions.ids)
    counts = times(answers, n)
    seen = locate(requests, observations.ids)
    live = observations.live & (seen >= 0)
    live_counts = times(np.where(observations.live, seen, -1), n)
    unseen = (counts > 0) & (live_counts == 0)
    faults: dict[str, Fault] = {
        "missing": fault((counts == 0) & passed, requests.ids),
        "duplicated": surplus(counts, requests.ids),
        "unrequested": fault(
            (answers < 0) & ~expired(predictions, answers, asked.truncated), predictions.ids
        ),
        "misordered": misordered(requests, predictions, answers),
        "observations_missing": fault(unseen & visible, requests.ids),
        "observations_duplicated": surplus(live_counts, requests.ids),
        "observations_unrequested": fault(seen < 0, observations.ids),
        "torn": fault(_torn(n, predictions, answers, observations, seen), requests.ids),
        "shadow_duplicated": shadow_duplicates(observations, seen),
    }
    first_answers = np.zeros(n, dtype=bool)
    first_answers[answers[(answers >= 0) & predictions.answered]] = True
    dead_letters, repeated = _dead_letters(client, model, asked.topic_id)
    return ModelAudit(
        model=model,
        requests=n,
        answered=int(first_answers.sum()),
        rejected=int(((counts > 0) & ~first_answers).sum()),
        in_flight=int(((counts == 0) & ~passed).sum()) + (0 if visible else int(unseen.sum())),
        observations_live=int(live.sum()),
        observations_shadow=int((~observations.live).sum()),
        shadow_missing=shadow_missing(observations, seen, _shadow_routes(client, model, arms)),
        dead_letters=dead_letters,
        dead_letters_duplicated=repeated,
        examples={name: found.examples for name, found in faults.items() if found.rows},
        **{name: found.rows for name, found in faults.items()},
    )


def _torn(n: int, predictions: Predictions, answers: Any, observations: Observations, seen: Any) -> Any:
    """Requests whose answer and whose live observation disagree."""
    said = np.full(n, -1, dtype=np.int8)
    said[answers[answers >= 0]] = predictions.answered[answers >= 0]
    live = observations.live & (seen >= 0)
    noted = np.full(n, -1, dtype=np.int8)
    noted[seen[live]] = observations.answered[live]
    return (said >= 0) & (noted >= 0) & (said != noted)


# ── Kafka ──


def _requests(settings: Settings, reader: Consumer, model: str) -> _Asked:
    """Ids of all committed request rows. A record is one row."""
    topic = REQUESTS.for_model(model)
    topic_id = topic_ids(admin(settings), [topic]).get(topic)
    if topic_id is None:
        raise UnknownModel(f"{model}: there is no topic {topic} yet; start the stack first")
    lows = {p: _watermarks(reader, topic, p)[0] for p in _partitions(reader, topic)}
    offsets: dict[int, list[int]] = {p: [] for p in lows}
    stamps: dict[int, list[int]] = {p: [] for p in lows}
    for message in _read(reader, topic):
        partition = message.partition() or 0
        offsets[partition].append(message.offset() or 0)
        stamps[partition].append(message.timestamp()[1])
    ids, where = [], []
    for partition in lows:
        at = np.array(offsets[partition], dtype=np.int64)
        made = prediction_ids(
            np.array(stamps[partition], dtype=np.int64), topic_id, partition, at, np.zeros_like(at)
        )
        ids.append(ids_of(made))
        where.append(np.full(len(at), partition, dtype=np.int64))
    every = np.concatenate([np.array(offsets[p], dtype=np.int64) for p in lows])
    return _Asked(
        Requests(np.concatenate(ids), np.concatenate(where), every),
        topic_id,
        {p: (found[0], found[-1] + 1) for p, found in offsets.items() if found},
        [p for p, low in lows.items() if low > 0],
    )


class _Answer(msgspec.Struct, gc=False):
    """What the audit needs of a prediction."""

    prediction_id: str = ""
    rejected: dict[str, object] | None = None


def _predictions(reader: Consumer, model: str) -> Predictions:
    decoder = msgspec.json.Decoder(_Answer)
    texts: dict[int, list[str]] = {}
    answered: dict[int, list[bool]] = {}
    topic = PREDICTIONS.for_model(model)
    for partition in _partitions(reader, topic):
        texts[partition], answered[partition] = [], []
    for message in _read(reader, topic):
        try:
            answer = decoder.decode(message.value() or b"")
        except msgspec.DecodeError:
            answer = _Answer()  # somebody else wrote here: an answer to nothing
        partition = message.partition() or 0
        texts[partition].append(answer.prediction_id)
        answered[partition].append(answer.rejected is None)
    return Predictions(
        np.concatenate([ids_of_texts(texts[p]) for p in texts]),
        np.concatenate([np.full(len(texts[p]), p, dtype=np.int64) for p in texts]),
        np.concatenate([np.array(answered[p], dtype=bool) for p in texts]),
    )


def _read(reader: Consumer, topic: str) -> Iterator[Message]:
    """Every committed record of `topic`, up to where each partition ends now."""
    ends = {p: _watermarks(reader, topic, p)[1] for p in _partitions(reader, topic)}
    unread = {p for p, end in ends.items() if end > 0}
    reader.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in unread])
    progressed = time.monotonic()
    while unread:
        messages = reader.consume(_BATCH, POLL_SEC)
        if messages:
            progressed = time.monotonic()
        elif time.monotonic() > progressed + READ_TIMEOUT_SEC:
            raise Outage(f"Kafka: {topic} cannot be read to its end")
        for message in messages:
            error = message.error()
            partition, offset = message.partition() or 0, message.offset() or 0
            if message.topic() != topic:
                continue  # the end of the topic read before, told late
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                if error.fatal() or not error.retriable():
                    raise KafkaException(error)
                continue
            if error is not None or offset >= ends[partition] - 1:
                unread.discard(partition)
            if error is None and offset < ends[partition]:
                yield message
    reader.unassign()


def _partitions(reader: Consumer, topic: str) -> list[int]:
    found = reader.list_topics(topic, timeout=REQUEST_TIMEOUT_SEC).topics[topic]
    if found.error is not None:
        raise Outage(f"Kafka: {topic}: {found.error.str()}")
    return sorted(found.partitions)


def _watermarks(reader: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """First offset, and the offset after the last that is decided: the reader asks for committed records."""
    found = reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=REQUEST_TIMEOUT_SEC)
    if found is None:
        raise Outage(f"Kafka: no watermarks of {topic}:{partition}")
    return int(found[0]), int(found[1])


def _gateway_passed(settings: Settings, reader: Consumer, model: str, asked: _Asked, deadline: float) -> Any:
    """Which requests the gateway has committed, after waiting for all of them."""
    topic = REQUESTS.for_model(model)
    ends = {(topic, partition): end for partition, (_, end) in asked.spans.items()}
    committed = _wait_committed(settings, GATEWAY_GROUP, lambda: ends, deadline)
    limit = np.zeros(max((p for p in asked.spans), default=0) + 1, dtype=np.int64)
    for (_, partition), offset in committed.items():
        limit[partition] = offset
    requests = asked.requests
    return requests.offsets < limit[requests.partitions] if len(requests.ids) else np.zeros(0, dtype=bool)


def _sink_caught_up(settings: Settings, reader: Consumer, deadline: float) -> bool:
    """Whether the sink has confirmed all observations and dead letters that are there now."""
    ends = {
        (topic, partition): _watermarks(reader, topic, partition)[1]
        for topic in (OBSERVATIONS.name, DEAD_LETTERS.name)
        for partition in _partitions(reader, topic)
    }
    committed = _wait_committed(settings, SINK_GROUP, lambda: ends, deadline)
    return all(committed[place] >= end for place, end in ends.items())


def _wait_committed(
    settings: Settings, group: str, wanted: Callable[[], dict[tuple[str, int], int]], deadline: float
) -> dict[tuple[str, int], int]:
    """The group's offsets, once they have reached `wanted` or the deadline has passed. The group is asked, never joined."""
    ends = wanted()
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


def _observations(client: Client, model: str, asked: _Asked) -> tuple[Observations, list[str]]:
    """The model's observation rows of the retained requests, and the arms' names by code."""
    spans = " OR ".join(
        f"(partition = {partition} AND offset >= {first} AND offset < {end})"
        for partition, (first, end) in asked.spans.items()
    )
    sql = f"""
        SELECT prediction_id, role = 'live' AS live, status = 'answered' AS answered, toString(arm) AS arm, route_revision
        FROM internal.observations
        WHERE model = {{model:String}} AND topic_id = {{topic_id:UUID}} AND ({spans or "0"})
    """
    found = client.query_arrow(
        sql, parameters={"model": model, "topic_id": str(asked.topic_id)}, use_strings=True
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
    )
    return rows, arms.dictionary.to_pylist()


def _id_bytes(chunk: Any) -> bytes:
    """A UUID column's bytes: Arrow's extension type over 16-byte values, without nulls."""
    storage = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
    data = storage.buffers()[1].to_pybytes()
    start = storage.offset * 16
    return bytes(data[start : start + len(storage) * 16])


def _shadow_routes(client: Client, model: str, arms: list[str]) -> dict[int, list[int]]:
    """Revision → codes of the shadow arms that copy all live traffic."""
    rows = client.query(
        "SELECT revision, arms FROM internal.routes FINAL WHERE model = {model:String}",
        parameters={"model": model},
    ).result_rows
    code = {name: i for i, name in enumerate(arms)}
    expected: dict[int, list[int]] = {}
    for revision, text in rows:
        shadows = [
            arm
            for arm in msgspec.json.decode(text, type=list[Arm])
            if arm.role == "shadow" and arm.weight >= 1
        ]
        if shadows:
            # An arm that no row names owes all of its copies: a code that nothing has.
            expected[int(revision)] = [code.get(arm.name, -1) for arm in shadows]
    return expected


def _dead_letters(client: Client, model: str, topic_id: uuid.UUID) -> tuple[int, int]:
    """Dead letters of the model's requests, and how many of them are there twice."""
    row = client.query(
        """
        SELECT count(), count() - uniqExact(stage, source_partition, source_offset) FROM internal.dead_letters
        WHERE model = {model:String} AND source_topic_id = {topic_id:UUID}
        """,
        parameters={"model": model, "topic_id": str(topic_id)},
    ).result_rows[0]
    return int(row[0]), int(row[1])
