"""ClickHouse refuses for now: too many parts, a full disk. The sink waits, and nothing is lost or doubled when it is over.

The refusals are ClickHouse's own, provoked by the settings that lead to them, on the table or on the target of one of its views: there the
table's part is committed already when the insert fails.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.services import Service
from tests.streams.sink.world import World, observations
from tests.waiting import until

pytestmark = pytest.mark.stack

TOO_MANY_PARTS = "parts_to_throw_insert", "1"
DISK_FULL = "min_free_disk_bytes_to_perform_insert", "1000000000000000000"


@contextmanager
def refusing(world: World, table: str, setting: tuple[str, str]) -> Iterator[None]:
    """Inserts into `table` fail meanwhile."""
    name, value = setting
    world.client.command(f"SYSTEM STOP MERGES {table}")
    world.client.command(f"ALTER TABLE {table} MODIFY SETTING {name} = {value}")
    try:
        yield
    finally:
        world.client.command(f"ALTER TABLE {table} RESET SETTING {name}")
        world.client.command(f"SYSTEM START MERGES {table}")


@pytest.mark.parametrize("table", ["internal.observations", "internal.prediction_lookup"])
def test_the_sink_waits_for_clickhouse_and_each_row_arrives_once(world: World, table: str) -> None:
    source = uuid.uuid4()
    sink = world.sink()
    sink.wait_ready()
    world.transaction([observations(source, 0, 100)])
    until(lambda: world.rows(source) == [100] * 4, "a first part")
    for refusal, says in ((TOO_MANY_PARTS, "TOO_MANY_PARTS"), (DISK_FULL, "NOT_ENOUGH_SPACE")):
        there = world.rows(source)[0]
        with refusing(world, table, refusal):
            world.transaction([observations(source, there, 100)])
            until(lambda: is_paused(sink), "the partition is paused")
            assert says in sink.stage("observations:0")["note"]
            world.transaction([observations(source, there + 100, 100)])
            # A successor finds the plan, and meets the same refusal.
            sink.restart()
            until(lambda: is_paused(sink), "the successor is paused too")
            assert not world.alerts("observations:0")
        arrived(world, source, there + 200)
    assert sink.stop() == 0


def is_paused(sink: Service) -> bool:
    return bool(sink.stage("observations:0").get("state") == "paused")


def arrived(world: World, source: uuid.UUID, rows: int) -> None:
    """Waits until `rows` are there and the sink has nothing more to do; then there must be no more."""
    until(lambda: world.rows(source)[0] >= rows, "the rows")
    end = world.end_offset("observations")
    until(lambda: world.committed("observations").offset >= end, "the sink has confirmed the end")
    assert world.rows(source) == [rows] * 4
