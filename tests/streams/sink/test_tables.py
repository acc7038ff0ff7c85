"""Each topic's records arrive as rows of its table."""

from __future__ import annotations

import json
import uuid

import msgspec
import pytest

from schemas import dead_letters as names
from schemas.events import Arm, RouteTable
from tests.streams.sink.world import MODEL, World
from tests.waiting import until

pytestmark = pytest.mark.stack


def test_events_feedback_and_dead_letters_arrive_and_tombstones_do_not(world: World) -> None:
    event_id, request_id, source_id = str(uuid.uuid4()), str(uuid.uuid4()), uuid.uuid4()
    arms = [Arm(name="champion", role="live", version="1.0", artifact="1.0-abc")]
    table = RouteTable(
        event_id=event_id, model=MODEL, at_ms=5, revision=7, stage="steady", arms=arms, retained=["x", "y"]
    )
    newer = json.dumps({**msgspec.to_builtins(table), "a_field_of_a_newer_version": {"deep": [1]}})
    world.produce("routes", newer.encode(), key=MODEL.encode())
    world.produce("routes", None, key=b"gone")
    alert_id = str(uuid.uuid4())
    alert = {
        "event_id": alert_id, "model": MODEL, "at_ms": 5, "kind": "input_drift", "severity": "normal", "subject": "a", "version": "1.0",
        "message": "m", "evidence": {"psi": 0.5, "bins": [1, 2]},
    }  # fmt: skip
    world.produce("alerts", json.dumps(alert).encode())
    rating = {"request_id": request_id, "kind": "rating", "value": 4}
    world.produce("feedback.m", json.dumps({**rating, "value": 9}).encode())
    world.produce("feedback.m", json.dumps(rating).encode(), key=b"tenant")
    headers = [
        (names.REASON, b"not_finite"), (names.STAGE, b"gateway"), (names.MODEL, b"m"), (names.TOPIC, b"requests.m"),
        (names.TOPIC_ID, str(source_id).encode()), (names.PARTITION, b"3"), (names.OFFSET, b"41"), (names.TIMESTAMP_MS, b"17"),
    ]  # fmt: skip
    world.produce("dead-letters", None, headers=headers)
    world.sink()
    until(
        lambda: world.count(f"count() FROM internal.dead_letters WHERE source_topic_id = '{source_id}'"),
        "the dead letter",
    )
    until(
        lambda: world.count(f"count() FROM internal.feedback WHERE request_id = '{request_id}'"),
        "the feedback",
    )
    until(
        lambda: world.count(f"count() FROM internal.routes WHERE event_id = '{event_id}'"), "the route table"
    )
    until(lambda: world.count(f"count() FROM internal.alerts WHERE event_id = '{alert_id}'"), "the alert")
    row = world.client.query(
        f"SELECT revision, arms, retained, frozen FROM internal.routes WHERE event_id = '{event_id}'"
    ).result_rows[0]
    assert (row[0], row[2], row[3]) == (7, ["x", "y"], False)
    assert msgspec.json.decode(row[1], type=list[Arm]) == arms
    evidence = world.client.query(
        f"SELECT evidence FROM internal.alerts WHERE event_id = '{alert_id}'"
    ).result_rows[0][0]
    assert json.loads(evidence) == alert["evidence"]
    said = world.client.query(
        f"SELECT value, entity, kind FROM internal.feedback WHERE request_id = '{request_id}'"
    ).result_rows
    assert said == [("4", "tenant", "rating")]
    letter = world.client.query(
        f"SELECT reason, source_partition, source_offset, timestamp_ms, died_at_ms, size_bytes "
        f"FROM internal.dead_letters WHERE source_topic_id = '{source_id}'"
    ).result_rows
    assert letter == [("not_finite", 3, 41, 17, -1, 0)]
