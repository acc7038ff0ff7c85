"""A chain of backups of a stack that runs: every point of it comes back whole, and whatever is wrong with it is found."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from click.testing import CliRunner

from cli.__main__ import main as tidemill
from cli.models import read_routes
from compose.backup.chain import Chain
from compose.backup.restore import restore
from compose.embedded.parts import ROOT
from compose.embedded.process import dying_with_parent
from compose.embedded.running import DEFAULT_MODELS_DIR, end
from compose.embedded.stack import Stack
from runtime.clock import now_ms
from runtime.compacted import CompactedTopic
from runtime.kafka import producer
from runtime.settings import Settings
from schemas.backup import MANIFEST, OBJECTS, Table
from schemas.events import Candidate, RouteTable
from schemas.topics import CANDIDATES, ROUTES
from tests.inference.serving import FEATURES, MODEL, version
from tests.waiting import until
from tidemill import Client
from warehouse import backup as warehouse
from warehouse.client import connect

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

SERVICES = ("gateway", "sink", "labels", "control")
LABELLED = 30


def command(*arguments: str) -> dict[str, Any]:
    """A command's JSON."""
    result = CliRunner().invoke(tidemill, [*arguments, "--json"], prog_name="tidemill")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


class Seen(NamedTuple):
    """What a deployment holds, asked by a way of its own."""

    tables: dict[str, Table]
    lookups: int
    route: RouteTable


def look(settings: Settings) -> Seen:
    client = connect(settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password)
    routes = CompactedTopic(settings, ROUTES.name)
    try:
        tables = warehouse.contents(client, warehouse.layout(client).tables)
        lookups = client.query("SELECT count() FROM internal.prediction_lookup").result_rows[0][0]
        return Seen(tables, lookups, msgspec.json.decode(routes.values[MODEL.encode()], type=RouteTable))
    finally:
        routes.close()
        client.close()


def rows(tables: Mapping[str, Table], name: str) -> int:
    return sum(partition.rows for partition in tables[name].partitions.values())


class Made(NamedTuple):
    """Three backups of one stack: full; incremental after more traffic and a decision; incremental after nothing."""

    folder: Path
    data: Path
    full: dict[str, Any]
    second: dict[str, Any]
    third: dict[str, Any]
    at_full: Seen
    at_second: Seen


@pytest.fixture(scope="module")
def one_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stacks that serve this model only: each model is one more interpreter with torch to start."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(DEFAULT_MODELS_DIR / MODEL, folder / MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIDEMILL_MODELS_DIR", str(folder))
        yield


@pytest.fixture(scope="module")
def running(one_model: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("original") / "data", services=SERVICES) as stack:
        yield stack


def introduce(settings: Settings) -> None:
    """Let version 1.0 answer: the control room is told of it as by the trainer, and tries and introduces it."""
    candidate = Candidate(
        event_id="made by hand", model=MODEL, at_ms=now_ms(), retrain_id="nobody's", kind="initial", version="1.0", base_version="",
        artifact=version(settings, "1.0"), passed=True,
    )  # fmt: skip
    sender = producer(settings)
    sender.produce(CANDIDATES.name, msgspec.json.encode(candidate), key=MODEL.encode())
    assert sender.flush(10) == 0
    until(lambda: MODEL in read_routes(settings), "a route")
    assert read_routes(settings)[MODEL].champion == "1.0"


@pytest.fixture(scope="module")
def made(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("backups") / "it's here"
    data = ["--data", str(running.data_dir)]
    introduce(running.settings)
    with Client(running.settings) as client:
        sent = [client.produce(MODEL, FEATURES, key=f"k{i % 7}", request_id=f"r{i}") for i in range(2000)]
        client.produce(MODEL, b"no JSON")
        client.flush()
        for i, one in enumerate(sent[:LABELLED]):
            client.feedback(MODEL, prediction_id=str(one.prediction_id), label="up", key=f"k{i % 7}")
    full = command("backup", "--to", str(folder), *data)
    at_full = look(running.settings)
    with Client(running.settings) as client:
        for i in range(50):
            client.produce(MODEL, FEATURES, key=f"k{i % 7}", request_id=f"s{i}")
    command("models", "freeze", MODEL, "--reason", "test", *data)
    second = command("backup", "--to", str(folder), *data)
    at_second = look(running.settings)
    third = command("backup", "--to", str(folder), *data)
    return Made(folder, running.data_dir, full, second, third, at_full, at_second)


def test_everything_that_was_produced_before_is_in_a_backup(made: Made) -> None:
    assert (made.full["kind"], made.full["complete"], made.full["late"]) == ("full", True, [])
    manifest = Chain(made.folder).manifest(made.full["name"])
    assert rows(manifest.tables, "internal.observations") == 2001
    assert rows(manifest.tables, "internal.dead_letters") == 1
    assert rows(manifest.tables, "internal.outcomes") == LABELLED
    assert manifest.tables == made.at_full.tables


def test_an_incremental_backup_builds_on_the_newest_and_holds_what_came_since(made: Made) -> None:
    assert (made.second["kind"], made.second["base"]) == ("incremental", made.full["name"])
    assert (made.third["kind"], made.third["base"]) == ("incremental", made.second["name"])
    manifest = Chain(made.folder).manifest(made.second["name"])
    assert rows(manifest.tables, "internal.observations") == 2051
    assert manifest.tables == made.at_second.tables


def test_what_did_not_change_is_not_copied_again(made: Made) -> None:
    chain = Chain(made.folder)
    full, second, third = (chain.manifest(each["name"]) for each in (made.full, made.second, made.third))
    assert third.tables == second.tables
    assert [path for path in third.files if path.startswith("warehouse/data/")] == []
    assert third.new_bytes == sum(content.size_bytes for content in third.files.values())  # no object either
    assert third.artifacts == full.artifacts
    assert len(list((made.folder / OBJECTS).iterdir())) == len(
        {content.sha256 for manifest in (full, second, third) for content in manifest.artifacts.values()}
        | {s.content.sha256 for m in (full, second, third) for t in m.topics.values() for s in t.segments}
    )
    data = [
        sum(c.size_bytes for p, c in m.files.items() if p.startswith("warehouse/data/"))
        for m in (full, second)
    ]
    assert data[1] < data[0] / 2


def test_a_whole_chain_is_verified(made: Made) -> None:
    found = command("verify", "--from", str(made.folder))
    assert (found["ok"], found["backups"]) == (
        True,
        [made.full["name"], made.second["name"], made.third["name"]],
    )


def damaged(made: Made, what: str) -> str:
    """A file of the full backup, or one that it needs."""
    manifest = Chain(made.folder).manifest(made.full["name"])
    if what == "manifest":
        return f"{made.full['name']}/{MANIFEST}"
    if what == "artifact":
        return f"{OBJECTS}/{next(iter(manifest.artifacts.values())).sha256}"
    if what == "topic":
        return f"{OBJECTS}/{manifest.topics[ROUTES.name].segments[0].content.sha256}"
    end = {"rows": "data.bin", "index": ".backup", "definition": "observations.sql"}[what]
    return next(f"{made.full['name']}/{path}" for path in manifest.files if path.endswith(end))


WHAT = ["manifest", "artifact", "topic", "rows", "index", "definition"]


def linked(chain: Path, folder: Path) -> Path:
    """Another copy of the chain, of hard links: a file is damaged in it by putting another in its place."""
    return Path(shutil.copytree(chain, folder, copy_function=os.link))


@pytest.mark.parametrize("what", WHAT)
def test_an_altered_file_is_named_and_nothing_is_restored_from_it(
    made: Made, tmp_path: Path, what: str
) -> None:
    chain = linked(made.folder, tmp_path / "chain")
    path = damaged(made, what)
    raw = bytearray((chain / path).read_bytes())
    raw[len(raw) // 2] ^= 1
    (chain / path).unlink()
    (chain / path).write_bytes(raw)
    found = CliRunner().invoke(tidemill, ["verify", "--from", str(chain)], prog_name="tidemill")
    assert (found.exit_code, path in found.output) == (1, True), found.output
    at = made.full["name"] if what == "topic" else made.second["name"]
    refused = CliRunner().invoke(
        tidemill,
        ["restore", "--from", str(chain), "--at", at, "--data", str(tmp_path / "new")],
        prog_name="tidemill",
    )
    assert (refused.exit_code, path in refused.output, refused.stdout) == (1, True, ""), refused.output
    assert sorted(each.name for each in tmp_path.iterdir()) == ["chain"]


@pytest.mark.parametrize("what", WHAT)
def test_a_file_that_is_cut_or_missing_is_a_fault_of_every_backup_that_needs_it(
    made: Made, tmp_path: Path, what: str
) -> None:
    chain = Chain(linked(made.folder, tmp_path / "chain"))
    path = damaged(made, what)
    raw = (chain.folder / path).read_bytes()
    (chain.folder / path).unlink()
    names = [made.full["name"], made.second["name"], made.third["name"]]
    # Of the topic's segments each backup has its own; the rest of the full one is what the others build on.
    needing = names[:1] if what == "topic" else names
    missing = chain.check(names)[0]
    assert [(fault.path, fault.problem, fault.backups) for fault in missing] == [
        (path, "is missing", needing)
    ]
    (chain.folder / path).write_bytes(raw[:-1])
    (cut,) = chain.check(names)[0]
    assert (cut.path, cut.backups) == (path, needing)
    assert cut.problem


def test_a_killed_backup_leaves_the_chain_as_it_was(made: Made) -> None:
    chain = Chain(made.folder)
    before = chain.names()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "backup", "--to", str(made.folder), "--full", "--data", str(made.data)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=dying_with_parent(),
    )  # fmt: skip
    until(lambda: list(made.folder.glob(".writing*")) or process.poll() is not None, "it begins to write")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (chain.names(), chain.check(before)[0]) == (before, [])
    made_again = command("backup", "--to", str(made.folder), "--data", str(made.data))
    assert made_again["base"] == before[-1]
    assert not list(made.folder.glob(".writing*"))
    assert chain.check(chain.names())[0] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["backup", "--to", "{data}/backups", "--data", "{data}"], "lies in the data folder"),
        (["backup", "--to", "/proc/backups", "--data", "{data}"], "/proc/backups"),
        (["backup", "--to", "{tmp}/b", "--data", "{tmp}/nothing"], "no stack runs"),
        (["restore", "--from", "{chain}", "--data", "{data}"], "holds something"),
        (["restore", "--from", "{chain}", "--data", "{chain}/new"], "lies in the chain"),
        (["restore", "--from", "{chain}", "--at", "2001", "--data", "{tmp}/new"], "expected one of"),
        (["verify", "--from", "{tmp}/nothing"], "there is no backup"),
    ],
)
def test_a_mistake_is_one_clear_line(made: Made, tmp_path: Path, arguments: list[str], says: str) -> None:
    given = [each.format(data=made.data, chain=made.folder, tmp=tmp_path) for each in arguments]
    result = CliRunner().invoke(tidemill, given, prog_name="tidemill")
    assert result.exit_code >= 2
    assert (says in result.output, result.output.strip().count("\n")) == (True, 0), result.output


def test_both_points_come_back_and_the_champion_answers_at_once(made: Made, tmp_path: Path) -> None:
    end(made.data)  # the original is not needed any more
    moved = tmp_path / "elsewhere"
    shutil.copytree(made.folder, moved)  # a chain does not know where it lies

    first = restore(moved, tmp_path / "first", at=made.full["name"])
    assert first.rows == sum(rows(made.at_full.tables, name) for name in made.at_full.tables)

    (tmp_path / "second.restoring").mkdir()
    (tmp_path / "second.restoring" / "half").write_text("left by a restore that was killed")
    command("restore", "--from", str(moved), "--at", made.second["name"], "--data", str(tmp_path / "second"))
    assert not (tmp_path / "second.restoring").exists()
    for kind in ("first", "second"):
        compared = filecmp.dircmp(
            made.data / "artifacts" / MODEL, tmp_path / kind / "artifacts" / MODEL, ignore=["runs"]
        )
        assert (compared.left_only, compared.right_only) == ([], [])
        assert all(not sub.diff_files and not sub.left_only for sub in compared.subdirs.values())

    with Stack(tmp_path / "second", services=("gateway", "sink", "labels", "control")) as stack:
        with Client(stack.settings) as client:
            answer = client.ask(MODEL, FEATURES, key="k0")
            client.feedback(
                MODEL, request_id="r1999", label="up", key=f"k{1999 % 7}"
            )  # asked before the backup
        assert answer.version == made.at_second.route.champion
        there = settled(stack, made)
        assert there.route == made.at_second.route
        assert there.route.frozen
        assert there.lookups == made.at_second.lookups + 1
        for name, table in made.at_second.tables.items():
            if name in ("internal.observations", "internal.outcomes", "internal.feedback"):
                assert rows(there.tables, name) == rows({name: table}, name) + 1
            else:
                assert there.tables[name] == table, name
        assert command("audit", MODEL, "--data", str(stack.data_dir))["ok"] is True


def settled(stack: Stack, made: Made) -> Seen:
    """When the label of a request from before the backup was joined in the restored deployment."""
    before = made.at_second.tables

    def joined() -> Seen | None:
        there = look(stack.settings)
        added = [
            rows(there.tables, name) - rows(before, name)
            for name in ("internal.outcomes", "internal.feedback")
        ]
        return there if added == [1, 1] else None

    found: Seen = until(joined, "the label's rows")
    return found
