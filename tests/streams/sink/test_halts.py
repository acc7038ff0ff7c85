"""What a person must look at halts its partition, with an alert, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition

from runtime.service import Health
from schemas.events import DriftEvidence
from schemas.spec import load_specs
from schemas.topics import DRIFT
from streams.sink import loop
from streams.sink.plan import Plan, encode_plan
from tests.services import Service
from tests.streams.sink.world import MODEL, World
from tests.waiting import until
from warehouse.client import connect

pytestmark = pytest.mark.stack
TOPIC = DRIFT.name


def drift(event_id: str) -> DriftEvidence:
    return DriftEvidence(
        event_id=event_id, model=MODEL, at_ms=1, window_start_ms=0, window_sec=10, version="1.0", test="psi", subject="a",
        statistic=0.5, threshold=0.25, rows=10, drifted=True,
    )  # fmt: skip


def encoded(**changes: Any) -> bytes:
    return msgspec.json.encode({**msgspec.to_builtins(drift(str(uuid.uuid4()))), **changes})


def there(world: World, event_id: str) -> int:
    return world.count(f"count() FROM internal.drift WHERE event_id = '{event_id}'")


@pytest.fixture
def mended(world: World) -> Iterator[World]:
    """Afterwards a person moves the group past what was halted, with the sink stopped."""
    yield world
    world.end()
    for partition in range(DRIFT.partitions):
        world.commit(TOPIC, partition, world.end_offset(TOPIC, partition))


def halted(world: World, sink: Service, partition: int) -> str:
    """Waits for the halt; returns its note, which the alert in ClickHouse repeats."""
    name = f"{TOPIC}:{partition}"
    until(lambda: sink.stage(name).get("state") == "halted", f"{name} halts")
    note = str(sink.stage(name)["note"])
    (alert,) = until(lambda: [one for one in world.alerts(name) if note in one.message], "its alert")
    assert (alert.kind, alert.severity) == ("partition_halted", "severe")
    return note


def test_a_range_that_clickhouse_refuses_halts_its_partition_and_the_others_go_on(mended: World) -> None:
    world = mended
    sink = world.sink()
    sink.wait_ready()
    offset = world.produce(TOPIC, encoded(rows="many"), partition=0)
    note = halted(world, sink, 0)
    assert f"ClickHouse refuses offsets {offset}-{offset}" in note
    event_id = str(uuid.uuid4())
    world.produce(TOPIC, encoded(event_id=event_id), partition=1)
    until(lambda: there(world, event_id), "another partition's row")
    # Mended by a person: the refused record is skipped, and the next one arrives.
    assert sink.stop() == 0
    world.commit(TOPIC, 0, offset + 1)
    event_id = str(uuid.uuid4())
    world.produce(TOPIC, encoded(event_id=event_id), partition=0)
    world.sink()
    until(lambda: there(world, event_id), "the next row")


def test_what_was_mended_elsewhere_goes_on_without_a_restart_and_is_told_once(
    mended: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, health = mended, Health("sink")
    monkeypatch.setattr(loop, "HALT_RETRY_SEC", 0.2)
    name, event_id = f"{TOPIC}:0", str(uuid.uuid4())
    found = world.settings
    client = connect(found.clickhouse_url, found.clickhouse_user, found.clickhouse_password)
    sink = loop.Sink(found, health, client, load_specs(found.models_dir))

    def stepping(condition: Callable[[], bool]) -> Callable[[], bool]:
        def stepped() -> bool:
            sink.step()
            return condition()

        return stepped

    halts: list[str] = []
    begin = sink._begin

    def counted(client: Consumer, places: list[TopicPartition]) -> list[TopicPartition]:
        halts.extend(partition.halted for partition in sink._partitions.values() if partition.halted)
        return begin(client, places)

    monkeypatch.setattr(sink, "_begin", counted)
    try:
        until(stepping(lambda: bool(health.snapshot()["ready"])), "it is ready")
        world.client.command("RENAME TABLE internal.drift TO internal.drift_elsewhere")
        try:
            world.produce(TOPIC, encoded(event_id=event_id), partition=0)
            until(stepping(lambda: len(halts) > 2), "it halts each time that it is tried again")
        finally:
            world.client.command("RENAME TABLE internal.drift_elsewhere TO internal.drift")
        until(stepping(lambda: there(world, event_id) == 1), "the row")
        until(stepping(lambda: len(world.alerts(name)) > 0), "the alert")
        end = world.end_offset(TOPIC)
        until(stepping(lambda: world.committed(TOPIC).offset == end), "the sink has confirmed it")
        until(stepping(lambda: health.snapshot()["stages"][name]["state"] == "running"), "it says so")
    finally:
        sink.close()
        client.close()
    assert not health.snapshot()["ready"], "it has no partition any more"
    assert all("UNKNOWN_TABLE" in reason for reason in halts)
    assert len([one for one in world.alerts(name) if "UNKNOWN_TABLE" in one.message]) == 1


def test_poison_halts_its_partition_after_what_stands_before_it(mended: World) -> None:
    event_id = str(uuid.uuid4())
    mended.produce(TOPIC, encoded(event_id=event_id), partition=1)
    offset = mended.produce(TOPIC, b"{broken", partition=1)
    note = halted(mended, mended.sink(), 1)
    assert note.startswith(f"offset {offset}: ")
    assert there(mended, event_id) == 1


def test_a_plan_of_a_topic_that_was_recreated_halts(mended: World) -> None:
    end = mended.end_offset(TOPIC, 0)
    mended.commit(TOPIC, 0, end, encode_plan(Plan(topic_id=uuid.UUID(int=1), end=end, rows=0)))
    assert "it was recreated" in halted(mended, mended.sink(), 0)


def test_an_offset_that_kafka_does_not_have_halts_and_is_not_reset(mended: World) -> None:
    beyond = mended.end_offset(TOPIC, 1) + 1000
    mended.commit(TOPIC, 1, beyond)
    assert f"Kafka no longer has offset {beyond}" in halted(mended, mended.sink(), 1)
    assert mended.committed(TOPIC, 1).offset == beyond
