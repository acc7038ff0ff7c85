"""Replays on a real broker, tritonserver and ClickHouse: the same answers as live, the same rows each time, no trace in live traffic."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from clickhouse_connect.driver.client import Client
from confluent_kafka import TopicPartition

from cli.__main__ import main
from compose.embedded.stack import Stack
from inference.ranges import Bound, Span, cut, open_reader, resolve
from inference.replay_plan import choose
from inference.triton import InferenceFailed, Triton
from inference.versions import open_version
from runtime.artifacts import ArtifactStore
from runtime.kafka import admin, consumer, producer
from runtime.settings import Settings
from schemas.errors import UserError
from schemas.events import RouteTable
from schemas.spec import load_spec
from schemas.topics import OBSERVATIONS, REPLAYS, ROUTES
from tests.inference.serving import (
    MODEL,
    PREDICTIONS_TOPIC,
    arm,
    committed,
    gateway,
    readers,
    request,
    send,
    version,
)
from tests.reader import Reader
from tests.services import service
from tests.waiting import until
from warehouse.client import connect

ROWS, BAD_EVERY = 4000, 80
BAD = ROWS // BAD_EVERY
Type = Callable[..., Result]


@dataclass(frozen=True)
class World:
    """Requests that version 1.0 answered live, and version 2.0, which no route names."""

    settings: Settings
    live: str
    other: str
    start: str
    end: str


@pytest.fixture(scope="module")
def settings(infrastructure: Stack) -> Settings:
    return infrastructure.settings


@pytest.fixture(scope="module")
def warehouse(settings: Settings) -> Iterator[Client]:
    client = connect(settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password)
    yield client
    client.close()


@pytest.fixture(scope="module")
def world(settings: Settings, warehouse: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("replay")
    live, other = version(settings, "1.0"), version(settings, "2.0")
    revision = champion(settings, live)
    with service(settings, folder / "sink.log", "streams", "sink"):
        with gateway(settings, folder) as serving, readers(settings) as written:
            serving.wait_ready()
            serving.wait_route(revision)
            places = send(settings, [asked(i) for i in range(ROWS)])
            written.answers(ROWS)
        partitions = sorted({place.partition for place in places})
        at = {p: [place.offset for place in places if place.partition == p] for p in partitions}
        caught_up(settings, OBSERVATIONS.name)
        yield World(
            settings, live, other,
            ",".join(f"{p}:{min(at[p])}" for p in partitions), ",".join(f"{p}:{max(at[p]) + 1}" for p in partitions),
        )  # fmt: skip


def asked(number: int) -> dict[str, Any]:
    value = (
        b"{" if number % BAD_EVERY == 0 else request(period=(number % 97) / 97, transfer=(number % 89) / 89)
    )
    return {"value": value, "key": b"k%d" % (number % 50)}


def champion(settings: Settings, artifact: str) -> int:
    """A route table with one live arm; its revision."""
    table = RouteTable(
        event_id=str(uuid.uuid4()), model=MODEL, at_ms=0, revision=time.time_ns(), stage="steady", arms=[arm(artifact)],
        champion=artifact.partition("-")[0],
    )  # fmt: skip
    client = producer(settings)
    client.produce(ROUTES.name, msgspec.json.encode(table), MODEL.encode())
    assert client.flush(10) == 0
    return table.revision


def caught_up(settings: Settings, topic: str) -> None:
    """Wait until the sink has confirmed everything that is in `topic` now."""
    member = consumer(settings, "sink")
    try:
        partitions = [
            TopicPartition(topic, p) for p in member.list_topics(topic, timeout=10).topics[topic].partitions
        ]
        ends = {place.partition: member.get_watermark_offsets(place, timeout=10)[1] for place in partitions}
        until(
            lambda: all(
                max(p.offset, 0) >= ends[p.partition] for p in member.committed(partitions, timeout=10)
            ),
            f"the sink is at the end of {topic}",
        )
    finally:
        member.close()


def count(warehouse: Client, what: str) -> int:
    return int(warehouse.query(f"SELECT count() FROM {what}").result_rows[0][0])


@pytest.fixture
def replay(world: World) -> Type:
    """Type `tidemill replay` over what the world asked, unless the words name another range."""

    def typed(*words: str) -> Result:
        own = () if "--from" in words else ("--from", world.start, "--to", world.end)
        line = ["replay", *(() if "--model" in words else ("--model", MODEL)), *own, *words]
        return CliRunner(env=world.settings.environment()).invoke(main, line)

    return typed


def report_of(done: Result) -> dict[str, Any]:
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def rows_of(warehouse: Client, run_id: str) -> list[str]:
    """All columns of the run's rows, as text: NaN equals NaN."""
    found = warehouse.query(
        f"SELECT toString(tuple(*)) FROM replays WHERE run_id = '{run_id}' ORDER BY prediction_id"
    )
    return [row[0] for row in found.result_rows]


def test_the_live_version_gives_the_live_answers_and_rejections(
    replay: Type, world: World, warehouse: Client
) -> None:
    report = report_of(replay("--json"))
    assert (report["version"], report["artifact"]) == ("1.0", world.live)
    assert (report["rows"], report["rejected"], report["compared_rows"]) == (ROWS, BAD, ROWS - BAD)
    assert (report["agreement"], report["identical"], report["mean_score_difference"]) == (1.0, 1.0, 0.0)
    columns = "prediction_id, request_id, entity, topic_id, partition, offset, row, status, reason, label, scores, numbers, requested_at"
    mine = f"FROM replays WHERE run_id = '{report['run_id']}'"
    live = f"FROM predictions WHERE prediction_id IN (SELECT prediction_id {mine})"
    assert count(warehouse, f"(SELECT {columns} {mine} INTERSECT SELECT {columns} {live})") == ROWS
    assert (
        count(
            warehouse,
            f"(SELECT 1 {mine} AND (role != 'replay' OR arm != if(status = 'answered', 'replay', '')))",
        )
        == 0
    )


def test_the_same_replay_twice_is_the_same_rows_though_each_was_written_twice(
    replay: Type, world: World, warehouse: Client
) -> None:
    first = report_of(replay("--version", "2.0", "--json"))
    caught_up(world.settings, REPLAYS.name)
    rows = rows_of(warehouse, first["run_id"])
    warehouse.command("SYSTEM STOP MERGES internal.replays")
    try:
        second = report_of(replay("--version", world.other, "--json"))
        caught_up(world.settings, REPLAYS.name)
        assert count(warehouse, f"internal.replays WHERE run_id = '{first['run_id']}'") == 2 * ROWS
    finally:
        warehouse.command("SYSTEM START MERGES internal.replays")
    assert {**second, "took_sec": 0} == {**first, "took_sec": 0}
    assert rows_of(warehouse, first["run_id"]) == rows


def test_a_replay_that_was_killed_half_way_is_whole_when_run_again(
    replay: Type, world: World, warehouse: Client
) -> None:
    results = Reader(world.settings, REPLAYS.name)
    words = ["--model", MODEL, "--from", world.start, "--to", world.end, "--run", "killed"]
    running = subprocess.Popen(
        [sys.executable, "-m", "cli", "replay", *words], env={**os.environ, **world.settings.environment()},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        until(results.read, "the first results")
    finally:
        running.kill()
        running.communicate(timeout=10)
        results.close()
    assert running.returncode == -9
    report = report_of(replay("--run", "killed", "--json"))
    assert report["run_id"].startswith("killed-")
    caught_up(world.settings, REPLAYS.name)
    one_id_each = f"SELECT count(), uniqExact(prediction_id) FROM replays WHERE run_id = '{report['run_id']}'"
    assert warehouse.query(one_id_each).result_rows == [(ROWS, ROWS)]
    assert report["identical"] == 1.0


def test_a_replay_leaves_no_trace_in_live_traffic(replay: Type, world: World, warehouse: Client) -> None:
    silent = [Reader(world.settings, topic) for topic in (PREDICTIONS_TOPIC, OBSERVATIONS.name)]
    before = (
        committed(world.settings),
        count(warehouse, "internal.observations"),
        count(warehouse, "internal.prediction_lookup"),
    )
    report_of(replay("--version", "2.0", "--run", "traceless", "--json"))
    assert [reader.read() for reader in silent] == [[], []]
    after = (
        committed(world.settings),
        count(warehouse, "internal.observations"),
        count(warehouse, "internal.prediction_lookup"),
    )
    assert after == before
    for reader in silent:
        reader.close()


def test_labels_measure_both_versions(replay: Type, world: World, warehouse: Client) -> None:
    run_id = report_of(replay("--version", "2.0", "--json"))["run_id"]
    warehouse.command(
        "INSERT INTO internal.outcomes (outcome_id, prediction_id, model, role, arm, truth, label) "
        "SELECT generateUUIDv4(), prediction_id, model, 'live', 'champion', label, label "
        f"FROM replays WHERE run_id = '{run_id}' AND status = 'answered' AND partition = 0"
    )
    done = replay("--version", "2.0", "--json")
    report = report_of(done)
    labeled = count(warehouse, f"replays WHERE run_id = '{run_id}' AND status = 'answered' AND partition = 0")
    assert (report["labeled_rows"], report["accuracy"]) == (labeled, 1.0)
    agreeing = count(
        warehouse,
        f"replays AS r JOIN predictions AS p ON p.prediction_id = r.prediction_id "
        f"WHERE r.run_id = '{run_id}' AND r.status = 'answered' AND r.partition = 0 AND r.label = p.label",
    )
    assert report["live_accuracy"] == pytest.approx(agreeing / labeled)
    assert report["agreement"] < 1.0


def test_triton_drops_a_version_that_no_route_names_and_keeps_the_live_one(
    replay: Type, world: World
) -> None:
    for artifact in (world.live, world.other):
        report_of(replay("--version", artifact, "--json"))
    assert hosted(world.settings, world.live)
    assert not hosted(world.settings, world.other)


def hosted(settings: Settings, artifact: str) -> bool:
    """Whether Triton has the version in memory: it answers though its folder is out of the store's sight."""
    store = ArtifactStore(settings.artifacts_dir)
    opened = open_version(store, load_spec(settings.models_dir / MODEL), artifact)
    folder = store.root / MODEL / artifact
    hidden = folder.with_name(f".hidden-{artifact}")

    async def answers() -> bool:
        triton = Triton(settings.triton_grpc_url)
        try:
            await triton.infer(opened.spec, artifact, opened.golden_inputs, len(opened.golden_scores))
        except InferenceFailed as error:
            assert "not in the store" in str(error)
            return False
        finally:
            await triton.close()
        return True

    folder.rename(hidden)
    try:
        return asyncio.run(answers())
    finally:
        hidden.rename(folder)


def test_a_version_that_fails_its_golden_batch_answers_nothing(replay: Type, world: World) -> None:
    broken = version(world.settings, "3.0", golden_error=0.5)
    done = replay("--version", broken)
    assert (done.exit_code, done.output.count("\n")) == (1, 1), done.output
    assert "golden" in done.output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--model", "ghost"), "no model 'ghost': expected one of electricity"),
        (("--version", "9.9"), "electricity has no version '9.9'; the store has 1.0-"),
        (("--from", "7:0"), "--from: found partition 7, expected one of 0, 1"),
        (("--from", "0:99999999"), "but requests.electricity:0 ends at "),
        (("--from", "yesterday"), "found 'yesterday', expected a time"),
        (("--run", "a b"), "--run: found 'a b'"),
    ],
)
def test_a_mistake_is_one_clear_line(replay: Type, words: tuple[str, ...], line: str) -> None:
    done = replay(*words)
    assert done.exit_code == 2, done.output
    assert line in done.output
    assert "Traceback" not in done.output


def test_an_empty_range_is_one_clear_line(replay: Type, settings: Settings) -> None:
    member = consumer(settings, "ranges")
    # Not 0: what is older than the retention, as tests' requests are, is deleted at a moment of the broker's choice.
    _, end = member.get_watermark_offsets(TopicPartition(f"requests.{MODEL}", 0), timeout=10)
    member.close()
    done = replay("--from", f"0:{end}", "--to", f"0:{end}")
    assert done.exit_code == 2, done.output
    assert f"requests.{MODEL}: the range holds no request" in done.output


def test_without_a_stack_it_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nothing")
    done = CliRunner().invoke(main, ["replay", "--model", MODEL, "--from", "-1h", "--data", str(folder)])
    assert (done.exit_code, done.output.count("\n")) == (7, 1), done.output


@pytest.fixture
def topic(settings: Settings) -> Iterator[str]:
    """A topic of this test's own, with ten records a second apart, the first at 1,000,000 ms; partition 1 is empty."""
    from confluent_kafka.cimpl import NewTopic

    name = f"range-{uuid.uuid4()}"
    client = admin(settings)
    client.create_topics([NewTopic(name, num_partitions=2, config={"retention.ms": "-1"})])[name].result(10)
    send(
        settings,
        [{"value": b"%d" % i, "partition": 0, "timestamp": 1_000_000 + 1000 * i} for i in range(10)], name,
    )  # fmt: skip
    yield name
    client.delete_topics([name])[name].result(10)


@pytest.mark.parametrize(
    ("start", "end", "spans"),
    [
        (1_000_000, "latest", (Span(0, 0, 10),)),
        (1_002_500, 1_005_000, (Span(0, 3, 5),)),
        (0, 1_000_001, (Span(0, 0, 1),)),
        ("earliest", {0: 4}, (Span(0, 0, 4),)),
        ({0: 8, 1: 0}, "latest", (Span(0, 8, 10),)),
    ],
)
def test_times_and_offsets_become_offsets(
    settings: Settings, topic: str, start: Any, end: Any, spans: Any
) -> None:
    reader = open_reader(settings)
    try:
        assert resolve(settings, reader, topic, start, end).spans == spans
    finally:
        reader.close()


def test_a_range_that_begins_before_what_is_retained_is_refused_and_says_what_is(
    settings: Settings, topic: str
) -> None:
    client, kept = admin(settings), TopicPartition(topic, 0, 4)
    client.delete_records([kept])[kept].result(10)
    reader = open_reader(settings)
    try:
        late: list[Bound] = [1_003_000, {0: 3}]
        for start in late:
            with pytest.raises(
                UserError, match=r"retained are 0:4 to 0:10 since 1970-01-01T00:16:44Z; --from earliest"
            ):
                resolve(settings, reader, topic, start, "latest")
        held: list[Bound] = [1_004_000, {0: 4}, "earliest"]
        for start in held:
            assert resolve(settings, reader, topic, start, "latest").spans == (Span(0, 4, 10),)
    finally:
        reader.close()


def test_batches_are_cut_by_offset_and_end_with_the_range(settings: Settings, topic: str) -> None:
    reader = open_reader(settings)
    try:
        range_ = resolve(settings, reader, topic, {0: 1}, {0: 9})
        batches = [[message.offset() for message in batch] for batch in cut(reader, range_, 3) if batch]
        assert batches == [[1, 2, 3], [4, 5, 6], [7, 8]]
    finally:
        reader.close()


def test_a_range_that_ends_in_a_transactions_marker_is_read_to_its_end(
    settings: Settings, topic: str
) -> None:
    writer = producer(settings, **{"transactional.id": topic})
    writer.init_transactions(30)
    for commit in (True, False):
        writer.begin_transaction()
        writer.produce(topic, b"", partition=0)
        writer.flush(10)
        writer.commit_transaction(30) if commit else writer.abort_transaction(30)
    reader = open_reader(settings)
    try:
        range_ = resolve(settings, reader, topic, {0: 9}, "latest")
        assert range_.spans == (Span(0, 9, 14),)
        assert [m.offset() for batch in cut(reader, range_, 100) for m in batch] == [9, 10]
    finally:
        reader.close()


def test_the_routed_artifact_is_meant_where_a_version_was_written_twice() -> None:
    first, second, other = "1.0-aaaaaaaaaaaa", "1.0-bbbbbbbbbbbb", "2.0-cccccccccccc"
    table = RouteTable(
        event_id="e", model="m", at_ms=0, revision=1, stage="steady", arms=[arm(second)], champion="1.0"
    )
    store = [first, second, other]
    assert choose(store, table, "m", "") == second
    assert choose(store, table, "m", "1.0") == second
    assert choose(store, table, "m", first) == first
    assert choose(store, None, "m", "2.0") == other
    with pytest.raises(UserError, match=r"more than one: expected one of 1\.0-a"):
        choose(store, None, "m", "1.0")
    with pytest.raises(UserError, match="no live champion: name one with --version; the store has none"):
        choose([], None, "m", "")
