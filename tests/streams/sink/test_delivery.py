"""Each row exactly once, whatever dies when."""

from __future__ import annotations

import random
import uuid

import pytest

from schemas.topics import OBSERVATIONS
from streams.sink.plan import decode_plan
from tests.compose.clickhouse_server import start
from tests.streams.sink.proxy import Fault
from tests.streams.sink.world import World, observations
from tests.waiting import until

pytestmark = pytest.mark.stack


def exactly(world: World, source: uuid.UUID, rows: int) -> None:
    """Waits until `rows` are there, in the table and in what its views fill; then there must be no more."""
    until(lambda: world.rows(source)[0] >= rows, f"{rows} rows, found {world.rows(source)}")
    end = world.end_offset("observations")
    until(lambda: world.committed("observations").offset >= end, "the sink has confirmed the end")
    assert world.rows(source) == [rows] * 4


def inserted_and_killed(world: World) -> uuid.UUID:
    """100 rows are in ClickHouse, and the sink that brought them has died before it heard so; returns their source."""
    source = uuid.uuid4()
    sink = world.sink()
    sink.wait_ready()
    world.proxy.arm(Fault.HOLD_ANSWER)
    world.transaction([observations(source, 0, 100)])
    assert world.proxy.reached.wait(30)
    sink.kill()
    assert world.rows(source) == [100] * 4
    return source


def test_committed_rows_arrive_once_aborted_ones_never_and_the_lag_reaches_zero(world: World) -> None:
    source = uuid.uuid4()
    for first in range(0, 400, 100):
        world.transaction([observations(source, first, 50), observations(source, first + 50, 50)])
        world.transaction([observations(source, 10_000 + first, 30)], commit=False)
    sink = world.sink()
    exactly(world, source, 400)
    # The log ends with an aborted transaction and its marker: nothing readable, and no lag.
    assert world.committed("observations").offset == world.end_offset("observations")
    until(lambda: sink.stage("observations:0").get("lag_records") == 0, "no lag")
    assert sink.stop() == 0


@pytest.mark.parametrize(
    "fault", [Fault.HOLD_REQUEST, Fault.HOLD_ANSWER], ids=["before the insert", "after the insert"]
)
def test_a_kill_between_two_steps_loses_nothing_and_doubles_nothing(world: World, fault: Fault) -> None:
    source = uuid.uuid4()
    sink = world.sink()
    sink.wait_ready()
    world.proxy.arm(fault)
    world.transaction([observations(source, 0, 100)])
    assert world.proxy.reached.wait(30)
    plan = decode_plan(world.committed("observations").metadata)
    assert plan is not None
    assert plan.rows == 100
    sink.kill()
    world.transaction([observations(source, 100, 100)])
    world.sink()
    exactly(world, source, 200)


def test_a_lost_answer_is_asked_for_again_with_the_same_token(world: World) -> None:
    source = uuid.uuid4()
    world.sink().wait_ready()
    world.proxy.arm(Fault.DROP_ANSWER)
    world.transaction([observations(source, 0, 100)])
    assert world.proxy.reached.wait(30)
    exactly(world, source, 100)


def test_a_crash_of_clickhouse_between_table_and_view_is_mended(world: World) -> None:
    """ClickHouse commits a table's part before its views'; a crash between them leaves observations that no label would find."""
    source = uuid.uuid4()
    sink = world.sink()
    sink.wait_ready()
    world.proxy.arm(Fault.HOLD_ANSWER)
    world.client.command("DETACH TABLE internal.prediction_lookup_mv")
    try:
        world.transaction([observations(source, 0, 100)])
        assert world.proxy.reached.wait(30)
    finally:
        world.client.command("ATTACH TABLE internal.prediction_lookup_mv")
    sink.kill()
    assert world.rows(source) == [100, 100, 0, 100]
    world.sink()
    until(lambda: world.rows(source)[2] == 100, "the view's rows")
    exactly(world, source, 100)


@pytest.mark.parametrize("lost", ["observations", "prediction_lookup", "request_lookup"])
def test_what_clickhouse_has_noted_and_not_kept_is_inserted_again(world: World, lost: str) -> None:
    """Killed after it has noted a block's token and before it has committed its part, ClickHouse takes every repeat for known."""
    source = inserted_and_killed(world)
    # A mutation leaves the tokens as they are, as long as no part that it has emptied is cleaned away.
    world.client.command(f"ALTER TABLE internal.{lost} MODIFY SETTING remove_empty_parts = 0")
    world.client.command(
        f"ALTER TABLE internal.{lost} DELETE WHERE startsWith(request_id, '{source}') SETTINGS mutations_sync = 2"
    )
    assert 0 in world.rows(source)
    world.sink()
    end = world.end_offset("observations")
    until(lambda: world.committed("observations").offset >= end, "the sink has confirmed the end")
    copies = 200 if lost == "observations" else 100
    assert world.rows(source) == [100, 100, copies, copies]


def test_a_look_up_row_that_stands_twice_halts_nothing(world: World) -> None:
    """Its copies say the same, and who looks up takes one."""
    source = inserted_and_killed(world)
    world.client.command(
        "INSERT INTO internal.prediction_lookup SETTINGS insert_deduplicate = 0 "
        f"SELECT * FROM internal.prediction_lookup WHERE startsWith(request_id, '{source}')"
    )
    world.sink()
    end = world.end_offset("observations")
    until(lambda: world.committed("observations").offset >= end, "the sink has confirmed the end")
    assert world.rows(source) == [100, 100, 200, 100]


def test_seeded_kills_under_load_leave_each_committed_row_once(world: World) -> None:
    chance = random.Random(20)
    source, committed = uuid.uuid4(), 0
    sink = world.sink()
    sink.wait_ready()
    for first in range(0, 60_000, 1000):
        commit = chance.random() > 0.25
        world.transaction(
            [observations(source, first, 500), observations(source, first + 500, 500)], commit=commit
        )
        committed += 1000 * commit
        if chance.random() < 0.12:
            sink.restart()
    exactly(world, source, committed)


def test_clickhouse_may_die_and_come_back(world: World) -> None:
    source = uuid.uuid4()
    sink = world.sink()
    sink.wait_ready()
    world.transaction([observations(source, 0, 100)])
    # Killed in the middle of an insert, the engine may take a view's block twice (`inserts`): that is another test's matter.
    exactly(world, source, 100)
    port = world.engine.port
    world.engine.process.kill()
    world.engine.process.wait()
    world.transaction([observations(source, 100, 100)])
    until(lambda: sink.stage("observations:0").get("state") == "paused", "the partition is paused")
    world.transaction([observations(source, 200, 100)])
    revived = start(world.engine_folder, "--port", str(port))
    world.engine.process, world.engine.port = revived.process, revived.port
    exactly(world, source, 300)
    until(lambda: sink.stage("observations:0").get("state") == "running", "the partition runs again")


def test_a_second_sink_takes_over_a_range_that_the_first_had_planned(world: World) -> None:
    source = uuid.uuid4()
    first = world.sink(slot=0)
    first.wait_ready()
    world.proxy.arm(Fault.HOLD_REQUEST)
    partitions = OBSERVATIONS.partitions
    for partition in range(partitions):
        world.transaction([observations(source, partition * 100, 100)], partition=partition)
    assert world.proxy.reached.wait(30)
    first.kill()
    world.sink(slot=1)
    rows = partitions * 100
    until(lambda: world.rows(source)[0] >= rows, "all rows")
    assert world.rows(source) == [rows] * 4


def test_two_sinks_share_the_partitions_and_the_rows_arrive_once(world: World) -> None:
    source = uuid.uuid4()
    first = world.sink(slot=0)
    first.wait_ready()
    for number in range(20):
        world.transaction(
            [observations(source, number * 100, 100)], partition=number % OBSERVATIONS.partitions
        )
        if number == 5:
            second = world.sink(slot=1)
    until(lambda: second.stages(), "the second has partitions")
    until(lambda: not first.stages().keys() & second.stages().keys(), "they share")
    until(lambda: world.rows(source)[0] >= 2000, "all rows")
    assert world.rows(source) == [2000] * 4
