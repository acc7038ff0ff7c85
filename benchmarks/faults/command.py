"""`tidemill bench faults`: break everything under load, then account for every event."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import msgspec
from clickhouse_connect.driver.client import Client

from benchmarks.faults import cost as cost_of
from benchmarks.faults import letters, orders, outcomes, report, schedule
from benchmarks.faults.account import Account
from benchmarks.faults.actions import Event, Executor
from benchmarks.faults.bugs.table import BUGS
from benchmarks.faults.load import Ledger, Load
from benchmarks.faults.monitor import Monitor, Recovery, wait_caught_up
from benchmarks.faults.proxy import Links
from benchmarks.faults.rows import LEAST_WIDTH, MODEL, Served
from benchmarks.faults.truth import Truth
from benchmarks.faults.truth import read as read_version
from benchmarks.faults.verify import verify
from benchmarks.faults.world import World
from benchmarks.report import show
from control.audit import audit
from runtime.artifacts import ArtifactStore
from runtime.clock import now_ms
from runtime.kafka import consumer
from runtime.settings import Settings
from warehouse.client import connect

WARM_UP_SEC: Final = 5.0
SECONDS_A_FAULT: Final = 3.0
PROGRESS_SEC: Final = 5.0
ORPHAN_GRACE_SEC: Final = 30
"""A label is looked for again after ever longer pauses: it is given up so much later at most."""


class Patience(NamedTuple):
    """How many seconds the harness waits for what should come by itself."""

    quiet_sec: float = 180.0
    """For recoveries under load, and then for a stage that does not move: one that moves may take as long as it needs."""
    labels_sec: float = 60.0
    metrics_sec: float = 60.0
    orders_sec: float = 60.0
    audit_sec: float = 30.0
    still_sec: float = 30.0
    """For what does not move any more."""


PATIENT: Final = Patience()


@click.command()
@click.option("--faults", default=40, show_default=True, type=click.IntRange(min=0), help="How many.")
@click.option("--seed", default=1, show_default=True, help="Of the schedule and of the load.")
@click.option(
    "--duration", "duration_sec", type=float, help="Seconds in which the faults begin.  [default: 3 a fault]"
)
@click.option("--rate", default=3000.0, show_default=True, help="Requests a second.")
@click.option("--only", multiple=True, metavar="KIND[:TARGET]", help="These faults only; may be repeated.")
@click.option(
    "--longest", "longest_sec", default=75.0, show_default=True, help="No fault longer than so many seconds."
)
@click.option(
    "--orphan-after",
    "orphan_after_sec",
    default=Served().orphan_after_sec,
    show_default=True,
    help="The model's feedback.orphan_after_sec.",
)
@click.option(
    "--width",
    type=click.IntRange(min=LEAST_WIDTH),
    default=LEAST_WIDTH,
    show_default=True,
    help="Numbers of a request: with some hundred, Triton reads them in shared memory.",
)
@click.option(
    "--latency-budget",
    "latency_budget_ms",
    type=click.IntRange(min=1),
    default=Served().latency_budget_ms,
    show_default=True,
    help="The model's serve.latency_budget_ms: with thousands, rows wait for company.",
)
@click.option(
    "--bug",
    type=click.Choice(sorted(BUGS)),
    help="Run a service with this seeded bug: the verdict must be bad.",
)
@click.option("--keep", is_flag=True, help="Keep the data folder; a bad verdict always does.")
@click.option(
    "--cost",
    is_flag=True,
    help="Break nothing: measure the gateway with transactions against the same without.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    faults: int, seed: int, duration_sec: float | None, rate: float, only: tuple[str, ...], longest_sec: float,
    orphan_after_sec: int, width: int, latency_budget_ms: int, bug: str | None, keep: bool, cost: bool, as_json: bool,
) -> None:  # fmt: skip
    """Break everything under load, then account for every event.

    Ctrl-C ends it early: no further fault, and the account of what was done. The
    exit code is 1 if any guarantee is broken.
    """
    if cost:
        show(cost_of.measure(seed), as_json)
        return
    planned = schedule.draw(
        seed, faults, SECONDS_A_FAULT * faults if duration_sec is None else duration_sec,
        schedule.choose(only or (BUGS[bug].only if bug else ()), longest_sec),
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="tidemill-faults-"))
    # That the broker is away is no news here; why a client got stuck would be.
    clients = logging.getLogger("librdkafka")
    clients.propagate = False
    clients.addHandler(logging.FileHandler(folder / "clients.log"))
    run = Run(folder, planned, seed, rate, Served(orphan_after_sec, width, latency_budget_ms), bug)
    finished = False

    def end_early(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say("ending early: no further fault, then the account; once more, and there is none")
        run.enough.set()

    before = signal.signal(signal.SIGINT, end_early)
    try:
        found = run.run(duration_sec or 0.0)
        finished = found["ok"]
    finally:
        signal.signal(signal.SIGINT, before)
        if finished and not keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            run.write_faults()
            say(f"data, logs, faults.json and, if a stage stood still, processes.json are kept in {folder}")
    click.echo(json.dumps(found) if as_json else "\n".join(report.lines(found)))
    sys.exit(0 if found["ok"] else 1)


class Run:
    """One run, from an empty folder to the verdict."""

    def __init__(
        self,
        folder: Path,
        planned: list[schedule.Fault],
        seed: int,
        rate: float,
        served: Served,
        bug: str | None,
        patience: Patience = PATIENT,
    ) -> None:
        self.events: list[Event] = []
        self.enough = threading.Event()
        """Once set, nothing more is broken, and the account begins."""
        self._folder = folder
        self._planned = planned
        self._seed = seed
        self._rate = rate
        self._served = served
        self._bug = bug
        self._patience = patience
        self._recoveries: Mapping[int, Recovery] = {}
        self._began = 0.0
        self._given_up_ms = 0
        """Feedback on nothing that was sent before is dead-lettered in the end."""

    def run(self, duration_sec: float) -> dict[str, Any]:
        """Load and faults, then quiet, then the account. The load lasts at least `duration_sec`."""
        mutation = (self._bug, BUGS[self._bug].services) if self._bug else None
        with (
            Links(schedule.LINKS) as links,
            World(self._folder, links, self._served, mutation) as world,
        ):
            say(f"the stack is up in {self._folder}")
            load = Load(
                world.settings, Ledger(self._seed, self._served.width), self._rate, world.snapshot, _say_stuck
            )
            monitor = Monitor(world)
            started = time.monotonic()
            load.start(world.request_topic_id())
            try:
                self._break(world, load, monitor, duration_sec)
                load_sec = time.monotonic() - started
                load.finish()
                problems = self._quiet(world, load)
                restarts = world.restarts()
                self._recoveries = dict(monitor.recoveries)
                for event in self.events:
                    recovery = self._recoveries.get(event.fault.number)
                    event.recovered_sec = None if recovery is None else recovery.at - self._began
            finally:
                monitor.close()
            say("accounting")
            account, cells = self._account(world, load)
            audited = _audit(world.settings, account, len(load.ledger.topic_ids), self._patience.audit_sec)
        return report.result(
            account, self.events, self._recoveries, monitor.memory_peaks_bytes, seed=self._seed, audit=audited,
            load_sec=load_sec, cells=cells, bug=self._bug or "", problems=problems,
            restarts=restarts, planned=len(self._planned),
        )  # fmt: skip

    def _break(self, world: World, load: Load, monitor: Monitor, duration_sec: float) -> None:
        time.sleep(WARM_UP_SEC)
        load.check()
        self._began = time.monotonic()
        executor = Executor(world, load, monitor, self._began, self.enough)
        self.events = executor.events
        told = 0.0

        def on_fault(event: Event) -> None:
            nonlocal told
            if time.monotonic() >= told + PROGRESS_SEC:
                told = time.monotonic()
                say(
                    f"{event.began_sec:7.1f} s  {len(executor.events)} of {len(self._planned)} faults, {load.ledger.sent:,} rows, "
                    f"{len(monitor.unrecovered)} not recovered; now {event.fault}"
                )

        executor.run(self._planned, on_fault)
        while (left := self._began + duration_sec - time.monotonic()) > 0:
            if self.enough.wait(min(left, 0.5)):
                break
            load.check()
        # Under load: a recovery is measured by what follows, too.
        deadline = time.monotonic() + self._patience.quiet_sec
        while monitor.unrecovered and time.monotonic() < deadline:
            time.sleep(0.2)
            load.check()

    def _quiet(self, world: World, load: Load) -> list[str]:
        """Wait until all that was sent is through; what is not by then is a problem of its own. What the processes say then is kept."""
        say("quiet: waiting for the stages to catch up")
        self._given_up_ms = now_ms() - (self._served.orphan_after_sec + ORPHAN_GRACE_SEC) * 1000
        settings, patience = world.settings, self._patience
        client = _warehouse(settings)
        try:
            wait_caught_up(settings, ("gateway", "sink", "labels"), self._patience.quiet_sec)
            outcomes.wait_for_labels(
                client, self._seed, load.ledger.sent, patience.labels_sec, patience.still_sec
            )
            letters.wait_for_orphans(
                client, load.ledger, self._served.orphan_after_sec, self._given_up_ms, patience.labels_sec,
                patience.still_sec,
            )  # fmt: skip
            wait_caught_up(settings, ("labels", "sink"), self._patience.quiet_sec)
            world.wait_whole(self._patience.quiet_sec)
        except TimeoutError as error:
            (self._folder / "processes.json").write_text(json.dumps(list(world.status().values()), indent=1))
            return [str(error)]
        finally:
            client.close()
        return []

    def _account(self, world: World, load: Load) -> tuple[Account, int]:
        settings = world.settings
        store = ArtifactStore(settings.artifacts_dir)
        overrides: dict[str, Any] = {"enable.partition.eof": True}
        reader = consumer(settings, f"account-{uuid.uuid4()}", **overrides)
        client = _warehouse(settings)
        truth = Truth(*(read_version(store, artifact) for artifact in world.artifacts))
        try:
            account = verify(
                reader,
                client,
                load.ledger,
                truth,
                load.base_ms,
                self._served.orphan_after_sec,
                self._given_up_ms,
            )
            orders.check(
                reader,
                client,
                store,
                load.ledger.commands,
                account,
                self._patience.orders_sec,
                self._patience.still_sec,
            )
            counted = outcomes.wait_for_metrics(client, self._patience.metrics_sec, self._patience.still_sec)
        finally:
            reader.close()
            client.close()
        account.note("metrics_mismatch", counted.differing, counted.example)
        return account, counted.cells

    def write_faults(self) -> None:
        """What was done when, for whoever looks into a failure."""
        rows = [
            {
                **event.fault._asdict(),
                "began_sec": event.began_sec,
                "ended_sec": event.ended_sec,
                "failure": event.failure,
                "met": event.met,
                "recovered_sec": event.recovered_sec,
                "recovery_sec": recovery and recovery.took_sec,
                "slowest": recovery and recovery.slowest,
            }
            for event in self.events
            for recovery in (self._recoveries.get(event.fault.number),)
        ]
        (self._folder / "faults.json").write_text(json.dumps(rows, indent=1))


def _warehouse(settings: Settings) -> Client:
    return connect(settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password)


def _audit(settings: Settings, account: Account, generations: int, wait_sec: float) -> dict[str, Any]:
    """`tidemill audit` must come to the same. It knows what Kafka retains: answers to a deleted topic are answers to nothing."""
    found = audit(settings, [MODEL], wait_sec=wait_sec).models[0]
    said = {name: value for name, value in msgspec.to_builtins(found).items() if name != "examples"}
    excused = account.events - found.requests if generations > 1 else 0
    ok = found.faults == excused == found.unrequested and found.in_flight == 0 and found.shadow_missing == 0
    if generations == 1:
        ok = found.ok and found.requests == account.events and found.shadow_missing == 0
    return {"ok": ok, **said}


def _say_stuck(why: str) -> None:
    say(f"the load's client is stuck, another one takes over: {why}")


def say(line: str) -> None:
    """Progress is for whoever watches, the result for whoever reads."""
    click.echo(line, err=True)
