"""The seeded bugs: each finds its seam, aims at what there is, and is judged by its own figures."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.faults import bugs as package
from benchmarks.faults import suite
from benchmarks.faults.account import Account
from benchmarks.faults.bugs.table import BUGS, Bug, Hit
from benchmarks.faults.command import Run
from benchmarks.faults.schedule import KINDS
from compose.embedded.stack import SERVICES
from warehouse.migrate import Migration

GUARDS = {"uncounted", "open_for_long"}
"""What goes together with a bug, and is none by itself."""
TARGETS = {kind.name: kind.targets for kind in KINDS}

# What is imported once is there in each fork, and what a bug changes is gone with it.
APPLY_EACH = """
import importlib, os, sys
import compose.setup, inference.gateway, streams.labels.service, streams.sink.service, streams.worker.service, warehouse.migrate
failed = []
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(f"benchmarks.faults.bugs.{name}").apply()
            warehouse.migrate.migrations()
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit(f"no seam: {failed}" if failed else 0)
"""


def test_every_bug_finds_the_seam_that_it_replaces() -> None:
    done = subprocess.run(
        [sys.executable, "-c", APPLY_EACH, *BUGS], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_at_least_sixteen_bugs_and_a_module_for_each() -> None:
    modules = {path.stem for path in Path(package.__path__[0]).glob("*.py")}
    assert modules - {"__init__", "table"} - GUARDS == BUGS.keys()
    assert len(BUGS) >= 16


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_put_into_services_and_hit_by_faults_that_exist(name: str) -> None:
    bug = BUGS[name]
    assert set(bug.services) <= SERVICES.keys() | {"setup"}
    for hit in bug.hits:
        assert hit.target in TARGETS[hit.kind]


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_caught_by_figures_that_the_account_has(name: str) -> None:
    account = Account(poison_injected=1)
    for figure in BUGS[name].caught_by:
        if figure != "poison_not_dead_lettered":
            account.note(figure, 1, "")
        assert figure in account.broken


def test_a_bug_is_caught_by_its_own_figure_only_and_only_if_that_is_zero_without_it() -> None:
    bug = Bug(("sink",), "loses rows", ("lost",))
    found = {"broken": {"lost": 3, "torn": 1}, "problems": [], "faults": 0, "load_sec": 1.0}
    assert suite.judge("bug", bug, found, {}).caught
    assert not suite.judge("bug", bug, found, {"lost": 1}).caught
    assert not suite.judge("bug", bug, {**found, "broken": {"torn": 1}}, {}).caught
    assert not suite.judge("bug", bug, {**found, "broken": {}, "problems": ["it did not start"]}, {}).caught


def test_what_is_missing_is_a_bugs_doing_only_if_every_stage_went_on() -> None:
    bug = Bug(("sink",), "loses rows and doubles others", ("lost", "duplicated"))
    stood = {"broken": {"lost": 3}, "problems": ["sink has 7 records left"], "faults": 0, "load_sec": 1.0}
    assert not suite.judge("bug", bug, stood, {}).caught
    assert suite.judge("bug", bug, {**stood, "broken": {"lost": 3, "duplicated": 1}}, {}).caught


def test_the_run_without_a_bug_has_the_faults_of_all_bugs_one_bugs_after_anothers() -> None:
    one = Bug(("sink",), "", (), (Hit("kill", "sink-0", 1.0), Hit("cut", "sink-kafka", 0.5, 2.0)))
    same, other = one._replace(what="like one"), Bug(("labels",), "", (), (Hit("kill", "labels-0", 0.5),))
    hits = suite.in_a_row([one, same, other])
    assert [hit.at_sec for hit in hits] == [1.0, 0.5, suite.end_sec(one.hits) + 0.5]
    faults = suite.plan(hits)
    assert [(fault.number, fault.target) for fault in faults] == [(0, "sink-kafka"), (1, "sink-0"), (2, "labels-0")]  # fmt: skip
    assert faults[0].duration_sec == 2.0


def test_what_ends_a_run_is_that_bugs_problem_and_its_data_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> None:
        raise KeyError("a figure")

    monkeypatch.setattr(Run, "run", end)
    found, folder = suite._run("plan_skipped", (), 1)
    assert found["problems"] == ["KeyError: 'a figure'"]
    assert not suite.judge("plan_skipped", BUGS["plan_skipped"], found, {}).caught
    assert (folder / "faults.json").exists()
    suite._tidy(folder, keep=False)
    assert not folder.exists()


def test_a_bug_that_no_kill_brought_out_is_hit_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean: dict[str, Any] = {"ok": True, "broken": {}, "problems": [], "faults": 1, "load_sec": 1.0}
    runs = iter([clean, clean, {**clean, "broken": {"lost": 3}}])
    monkeypatch.setattr(suite, "_run", lambda *_: (next(runs), tmp_path / "run"))
    done = CliRunner().invoke(suite.command, ["--bug", "offsets_before_insert", "--json"])
    assert done.exit_code == 0, done.output
    (verdict,) = json.loads(done.stdout.splitlines()[-1])["verdicts"]
    assert (verdict["caught"], verdict["tries"]) == (True, 2)

    monkeypatch.setattr(suite, "_run", lambda *_: (clean, tmp_path / "run"))
    done = CliRunner().invoke(suite.command, ["--bug", "offsets_before_insert", "--tries", "2", "--json"])
    assert done.exit_code == 1
    (verdict,) = json.loads(done.stdout.splitlines()[-1])["verdicts"]
    assert (verdict["caught"], verdict["tries"]) == (False, 2)


def test_a_migration_that_was_rewritten_takes_no_bug_with_it() -> None:
    migrations = [Migration(1, "create", "CREATE TABLE a (b)")]
    assert package.changed(migrations, "(b)", "(c)")[0].text == "CREATE TABLE a (c)"
    with pytest.raises(AssertionError, match="no migration says"):
        package.changed(migrations, "(d)", "(c)")


def test_a_seam_that_was_rewritten_takes_no_bug_with_it() -> None:
    class Product:
        def commit(self, rows: int, *, now: int) -> int:
            return rows + now

    class Fits:
        def commit(self, *_rows: int, now: int) -> int:
            return now

    class Rotten:
        def commit(self) -> int:
            return 0

    rooms = SimpleNamespace(Producer=Product, product=Product())
    assert package.replace(rooms, "Producer", Fits) is Product
    assert rooms.Producer is Fits
    with pytest.raises(AssertionError, match=r"Producer: commit: too many positional arguments"):
        package.replace(SimpleNamespace(Producer=Product), "Producer", Rotten)
    with pytest.raises(AssertionError, match=r"commit: got an unexpected keyword argument 'now'"):
        package.replace(rooms.product, "commit", lambda rows: rows)

    def by_name(name: str, *, now: int) -> int:
        return len(name) + now

    with pytest.raises(AssertionError, match=r"commit: name is .*str.*, not .*int"):
        package.replace(rooms.product, "commit", by_name)
