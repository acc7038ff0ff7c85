"""The audit on a real broker and engine: it proves what the sink delivered, and sees what is broken by hand."""

from __future__ import annotations

import uuid

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import TopicPartition

from control.audit import ModelAudit, audit
from runtime.dead_letters import origin_headers
from runtime.kafka import admin, consumer, topic_ids
from schemas.arrow import UUID
from schemas.dead_letters import Origin
from schemas.errors import UnknownModel
from schemas.identity import prediction_id, prediction_ids
from schemas.requests import Prediction, Rejected
from tests.streams.sink.world import MODEL, World, observations
from tests.waiting import until

pytestmark = pytest.mark.stack
ROWS = 300


def account(world: World, wait_sec: float = 30.0) -> ModelAudit:
    (found,) = audit(world.settings, [MODEL], wait_sec).models
    return found


def answer(world: World, prediction: uuid.UUID) -> None:
    world.produce(
        f"predictions.{MODEL}",
        msgspec.json.encode(Prediction(prediction_id=str(prediction), model=MODEL, label="up")),
    )


def serve(world: World) -> list[uuid.UUID]:
    """What a gateway does with `ROWS` requests in partition 0; returns their ids."""
    topic = f"requests.{MODEL}"
    offsets = np.array(
        [world.produce(topic, b'{"a": 1}', timestamp=1_700_000_000_000) for _ in range(ROWS)], dtype=np.int64
    )
    topic_id = topic_ids(admin(world.settings), [topic])[topic]
    times = np.full(ROWS, 1_700_000_000_000, dtype=np.int64)
    ids = prediction_ids(times, [(topic_id, 0, len(offsets))], offsets, np.zeros_like(offsets))
    batch = observations(topic_id, int(offsets[0]), ROWS, at_ms=1_700_000_000_000)
    assert batch.column("prediction_id").equals(pa.array([one.tobytes() for one in ids], UUID))
    made = [uuid.UUID(bytes=one.tobytes()) for one in ids]
    for one in made:
        answer(world, one)
    world.transaction([batch.slice(0, 200), batch.slice(200)])
    member = consumer(world.settings, "gateway")
    member.commit(offsets=[TopicPartition(topic, 0, int(offsets[-1]) + 1)], asynchronous=False)
    member.close()
    return made


def test_the_audit_proves_a_whole_account_and_sees_each_fault(world: World) -> None:
    ids = serve(world)
    before = account(world, wait_sec=0)
    assert (before.in_flight, before.faults, before.ok) == (ROWS, 0, False)
    sink = world.sink()
    whole = account(world)
    assert (whole.requests, whole.answered, whole.observations_live) == (ROWS, ROWS, ROWS)
    assert whole.ok, whole
    until(lambda: sink.stages(), "the sink is up")

    answer(world, ids[7])
    answer(world, uuid.uuid4())
    world.client.command(
        f"ALTER TABLE internal.observations DELETE WHERE prediction_id = '{ids[9]}' SETTINGS mutations_sync = 2"
    )
    world.produce(f"requests.{MODEL}", b'{"a": 2}')
    broken = account(world, wait_sec=0)
    assert (broken.duplicated, broken.unrequested, broken.misordered) == (1, 1, 1)
    assert (broken.observations_missing, broken.in_flight, broken.missing) == (1, 1, 0)
    assert broken.examples["duplicated"] == [ids[7].hex]
    assert broken.examples["observations_missing"] == [ids[9].hex]
    assert not broken.ok


def test_attempts_are_accounted_for_apart_and_analysts_see_the_newest(world: World) -> None:
    topic, redrives = f"requests.{MODEL}", f"redrives.{MODEL}"
    at_ms = 1_700_000_000_000
    offset = world.produce(topic, b'{"a": 1}', timestamp=at_ms)
    topic_id = topic_ids(admin(world.settings), [topic])[topic]
    made = prediction_id(at_ms, topic_id, 0, offset)
    origin = Origin(topic=topic, topic_id=topic_id, partition=0, offset=offset, timestamp_ms=at_ms, attempt=1)
    again = world.produce(redrives, b'{"a": 1}', headers=origin_headers(origin))
    answers = (
        Prediction(prediction_id=str(made), model=MODEL, rejected=Rejected(reason="missing_field")),
        Prediction(prediction_id=str(made), model=MODEL, label="up", attempt=1),
    )
    first = observations(topic_id, offset, 1, at_ms=at_ms)
    names = first.schema.names
    rejected = pa.array(["rejected"], pa.string())
    rows = [
        first.set_column(names.index("status"), first.schema.field("status"), rejected),
        first.set_column(names.index("attempt"), first.schema.field("attempt"), pa.array([1], pa.uint8())),
    ]
    for answered in answers:
        world.produce(f"predictions.{MODEL}", msgspec.json.encode(answered))
    world.transaction(rows)
    member = consumer(world.settings, "gateway")
    member.commit(
        offsets=[TopicPartition(topic, 0, offset + 1), TopicPartition(redrives, 0, again + 1)],
        asynchronous=False,
    )
    member.close()
    world.sink()
    until(
        lambda: world.count(f"count() FROM internal.observations WHERE prediction_id = '{made}'") == 2,
        "both attempts",
    )
    found = account(world)
    assert (found.redriven, found.redriven_answered, found.redriven_rejected, found.redrive_faults) == (
        1,
        1,
        0,
        0,
    )
    seen = world.client.query(
        f"SELECT status, attempt FROM default.predictions WHERE prediction_id = '{made}'"
    ).result_rows
    assert seen == [("answered", 1)]
    assert world.count(f"count() FROM internal.prediction_lookup WHERE prediction_id = '{made}'") == 1

    world.produce(f"predictions.{MODEL}", msgspec.json.encode(answers[1]))
    before = found.duplicated
    broken = account(world, wait_sec=0)
    assert (broken.redrive_faults, broken.duplicated) == (1, before)
    assert broken.examples["redrive: duplicated"] == [made.hex]


def test_a_model_without_a_spec_is_one_line(world: World) -> None:
    with pytest.raises(UnknownModel, match="no model 'nope': expected one of m"):
        audit(world.settings, ["nope"])
