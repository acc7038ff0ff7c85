"""The demo's steps: start, train version 1, replay with late labels while gateway and sink are killed, settle, audit, measure, report."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import psutil
from clickhouse_connect.driver.client import Client as Warehouse
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cli.demo import measures, page, references
from cli.demo.memory import PeakMemory
from cli.demo.refit import scheduled_refit
from cli.train import command_for, from_now_on, send, wait_for_order, wait_for_version
from compose.embedded import parts
from compose.embedded.running import owner_pid
from compose.embedded.stack import Stack
from control.audit import AuditReport, audit
from runtime.settings import Settings
from scenarios import electricity, reviews
from scenarios.replay import Progress as Sent
from scenarios.replay import Report as Replayed
from scenarios.replay import replay
from scenarios.scenario import Scenario
from schemas.errors import UserError
from schemas.spec import load_spec
from tidemill import Client
from training.files import load_file
from warehouse.client import connect

LOADERS: Final[Mapping[str, Callable[[Path], Scenario]]] = {
    "electricity": electricity.load,
    "reviews": reviews.load,
}
KILLED: Final = ("gateway", "sink")
SETTLE_SEC: Final = 60.0
TRAIN_SEC: Final = 300.0


class Options(NamedTuple):
    """What was asked for."""

    scenario: str
    rows_per_sec: float | None
    """None: as fast as it goes."""
    seed: int
    data_dir: Path
    references: bool
    keep: bool


def run(options: Options, console: Console) -> tuple[dict[str, Any], list[str]]:
    """Run the demo; return its figures, and what does not hold (empty if all does)."""
    began = time.monotonic()
    scenario = LOADERS[options.scenario](parts.path("datasets"))
    console.print(
        f"[bold]{scenario.name}[/]: {scenario.first:,} rows train version 1, {len(scenario) - scenario.first:,} are replayed, "
        f"labels {scenario.label_delay_rows} rows late, seed {options.seed}"
    )
    _clear(options.data_dir)
    with PeakMemory() as memory, Stack(options.data_dir) as stack:
        console.print(f"the stack is ready after {time.monotonic() - began:.1f} s: {stack.data_dir}")
        settings = stack.settings
        with console.status("training version 1"):
            _train(settings, scenario, options)
        setup_sec = time.monotonic() - began
        console.print(f"version 1 answers after {setup_sec:.1f} s")
        warehouse = connect(settings.clickhouse_url)  # as an analyst would: read-only, without a password
        replayed, kills = _replay(stack, scenario, options, console)
        with console.status("waiting until every row and label is in ClickHouse"):
            visible_ms = _settle(warehouse, scenario.name, replayed)
        with console.status("auditing: every request, its answer, its row"):
            account = audit(settings, [scenario.name], wait_sec=SETTLE_SEC)
        figures = _figures(warehouse, scenario, options, replayed, account, kills, visible_ms)
        figures |= {"peak_pss_mb": round(memory.peak_mb), "setup_s": round(setup_sec, 1)}
        right = _right(warehouse, scenario, options, settings.models_dir, console)
        report = _report(warehouse, scenario, options, figures, right, account, kills)
        if options.keep:
            stack.detach()
    figures["run_s"] = round(time.monotonic() - began, 1)
    written = page.write(report, options.data_dir / "report")
    _summary(console, figures, right)
    console.print(f"report: {written}\npicture: {written.with_name(page.PICTURE)}", soft_wrap=True)
    return figures, _problems(figures, account, scenario)


def _clear(folder: Path) -> None:
    """Remove what an earlier demo left; never anything else.

    Raises:
        UserError: the folder holds something else, or a stack runs on it.
    """
    if (pid := owner_pid(folder)) is not None:
        raise UserError(
            f"{folder}: a stack runs on it (pid {pid}); end it with `tidemill down --data {folder}`"
        )
    known = {
        "artifacts",
        "clickhouse",
        "clickhouse-writer-password",
        "kafka",
        "logs",
        "report",
        "run",
        "train.parquet",
        "triton",
    }
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if strange := found - known:
        raise UserError(
            f"{folder}: holds {', '.join(sorted(strange))}, expected an empty folder or an earlier demo's"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _train(settings: Settings, scenario: Scenario, options: Options) -> None:
    """Version 1, from the first rows, by the way that `tidemill train` goes."""
    path = options.data_dir / "train.parquet"
    scenario.write_training_file(path)
    spec = load_spec(settings.models_dir / scenario.name)
    command = command_for(settings, spec, load_file(path, spec, "label"), options.seed)
    answers = from_now_on(settings)
    send(settings, command)
    order = wait_for_order(command, answers)
    answer = wait_for_version(settings, order, answers, TRAIN_SEC, Console(quiet=True))
    answers.close()
    if answer.rollout.action != "introduce":
        raise UserError(f"version 1 was not introduced: {answer.rollout.action}: {answer.rollout.reason}")


def _replay(
    stack: Stack, scenario: Scenario, options: Options, console: Console
) -> tuple[Replayed, list[page.Mark]]:
    """Replay, and kill gateway and sink halfway."""
    kills: list[page.Mark] = []
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        TextColumn("{task.fields[state]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar, Client(stack.settings) as client:
        task = bar.add_task("replaying", total=len(scenario) - scenario.first, state="")

        def on_progress(sent: Sent) -> None:
            bar.update(
                task,
                completed=sent.sent,
                state=f"{sent.answered:,} answered, {sent.labels:,} labels fed back",
            )
            if not kills and sent.sent >= sent.rows // 2:
                for name in KILLED:
                    pid = stack.kill(name)
                    kills.append(
                        page.Mark("kill", scenario.first + sent.sent, f"{name} (pid {pid}) got SIGKILL")
                    )
                console.print(f"row {scenario.first + sent.sent:,}: killed {' and '.join(KILLED)}")

        replayed = replay(
            scenario,
            client,
            rate_rows_per_sec=options.rows_per_sec,
            on_progress=on_progress,
            settle_sec=SETTLE_SEC,
        )
    return replayed, kills


def _settle(warehouse: Warehouse, model: str, replayed: Replayed) -> int:
    """Wait until all rows, then all labels are visible and the last order is answered; the time (ms since 1970) at which the last row was."""
    deadline = time.monotonic() + SETTLE_SEC
    parameters = {"model": model}

    def number(sql: str) -> int:
        return int(warehouse.query(sql, parameters=parameters).result_rows[0][0])

    visible_ms = 0
    while time.monotonic() < deadline:
        if (
            not visible_ms
            and number("SELECT count() FROM predictions WHERE model = {model:String}") >= replayed.requests
        ):
            visible_ms = time.time_ns() // 1_000_000
        labels = number("SELECT count() FROM labels WHERE model = {model:String}")
        orders = number("SELECT count() FROM retrains WHERE model = {model:String}")
        answers = number("SELECT count() FROM candidates WHERE model = {model:String}")
        if visible_ms and labels >= replayed.labels and answers >= orders:
            break
        time.sleep(0.02)
    return visible_ms or time.time_ns() // 1_000_000


def _figures(
    warehouse: Warehouse, scenario: Scenario, options: Options, replayed: Replayed, account: AuditReport,
    kills: list[page.Mark], visible_ms: int,
) -> dict[str, Any]:  # fmt: skip
    measured = measures.measure(warehouse, scenario.name, scenario.label_delay_rows)
    first_ms = int(
        warehouse.query(
            "SELECT min(toUnixTimestamp64Milli(requested_at)) FROM predictions WHERE model = {model:String}",
            parameters={"model": scenario.name},
        ).result_rows[0][0]
    )
    model = account.models[0]
    codes = _codes(scenario)
    return {
        "scenario": scenario.name,
        "seed": options.seed,
        "label_delay_rows": scenario.label_delay_rows,
        "requests": model.requests,
        "answered": model.answered,
        "rejected": model.rejected,
        "rows": measured["rows"],
        "missing": model.missing + model.observations_missing + model.in_flight,
        "duplicated": model.duplicated + model.observations_duplicated,
        "labels": measured["labels"],
        "label_coverage": round(measured["labels"] / max(model.requests, 1), 4),
        **{
            name: measured[name]
            for name in ("labels_orphaned", "drift_alerts", "retrains", "update_promotions", "major_promotions", "candidates_refused", "rollbacks")
        },
        "kills": len(kills),
        "accuracy_live": _rounded(measured["accuracy_live"]),
        "accuracy_frozen": _rounded(measured["accuracy_frozen"]),
        "accuracy_no_change": _rounded(references.no_change(codes, scenario.first, scenario.label_delay_rows).mean()),
        "accuracy_majority": _rounded(references.majority(codes, scenario.first).mean()),
        "f1_live": _rounded(measured["f1_live"]),
        "f1_frozen": _rounded(measured["f1_frozen"]),
        "latency_p50_ms": round(replayed.latency_percentile_ms(50), 1),
        "latency_p99_ms": round(replayed.latency_percentile_ms(99), 1),
        "events_per_s": round(model.requests / max(visible_ms - first_ms, 1) * 1000, 1),
        "label_to_live_p50_ms": measured["label_to_live_p50_ms"],
        "label_to_live_steps_ms": measures.steps(warehouse, scenario.name),
        "label_lead_rows_min": measured["label_lead_rows_min"],
        "paired_rows": measured["paired_rows"],
    }  # fmt: skip


def _right(
    warehouse: Warehouse, scenario: Scenario, options: Options, models_dir: Path, console: Console
) -> dict[str, NDArray[np.bool_]]:
    """Who was right at each row: live and frozen from ClickHouse, the references computed now."""
    rows = warehouse.query_arrow(measures.OVER_TIME, parameters={"model": scenario.name})
    right = {
        "with the loop": np.asarray(rows["live_correct"]).astype(bool),
        "version 1, left alone": np.asarray(rows["frozen_correct"]).astype(bool),
    }
    codes, first, delay = _codes(scenario), scenario.first, scenario.label_delay_rows
    right["last available label"] = references.no_change(codes, first, delay)
    right["majority"] = references.majority(codes, first)
    if not options.references:
        return right
    columns = [
        references.text_columns(list(map(str, values)))
        if isinstance(values[0], str)
        else np.asarray(values, dtype=np.float32)[:, None]
        for values in scenario.columns.values()
    ]
    table = np.hstack(columns)
    with console.status("computing the references") as status:

        def show(what: str, share: float) -> None:
            status.update(f"computing the references: {what} {share:.0%}")

        name = f"the same model, refitted {references.REFITS} times on the newest {first:,} labels"
        right[name] = scheduled_refit(models_dir, scenario, codes, options.seed, show)
        for name, refit in (
            ("gradient boosting, fitted once", False),
            (f"gradient boosting, refitted {references.REFITS} times on all labels", True),
        ):
            right[name] = references.boosting(table, codes, first, delay, options.seed, refit, show)
    return right


def _report(
    warehouse: Warehouse, scenario: Scenario, options: Options, figures: Mapping[str, Any],
    right: Mapping[str, NDArray[np.bool_]], account: AuditReport, kills: list[page.Mark],
) -> page.Report:  # fmt: skip
    model = scenario.name
    times = warehouse.query(measures.ROW_AT, parameters={"model": model}).result_rows
    at_ms = np.maximum.accumulate(np.array([row[0] for row in times]))
    marks = [
        page.Mark(
            str(row["kind"]), scenario.first + int(np.searchsorted(at_ms, row["at_ms"])), str(row["what"])
        )
        for row in measures.table(warehouse, measures.MARKS, model=model)
    ]
    lineage = measures.table(warehouse, measures.LINEAGE, model=model, skip=figures["update_promotions"] // 2)
    gain = (figures["accuracy_live"] or 0) - (figures["accuracy_frozen"] or 0)
    speed = f"{options.rows_per_sec:g} rows/s" if options.rows_per_sec else "full speed"
    faults = account.models[0].faults
    return page.Report(
        title=f"Tidemill on {model}: {figures['requests']:,} requests at {speed}, labels {scenario.label_delay_rows} rows late",
        figures=figures,
        sql=measures.statements(),
        right=right,
        first_row=scenario.first,
        marks=sorted([*marks, *kills], key=lambda mark: mark.row),
        lineage=lineage[0] if lineage else {},
        audit={
            name: getattr(account.models[0], name)
            for name in account.models[0].__struct_fields__
            if name != "examples"
        },
        machine=_machine(),
        closing=(
            f"With the loop {figures['accuracy_live']:.3f} of the answers were right; version 1, left alone, would have been right in "
            f"{figures['accuracy_frozen']:.3f} of the same rows: {gain:+.3f}. Gateway and sink were killed on the way; the audit found "
            f"{'nothing missing and nothing twice' if not faults else f'{faults} faults'}."
        ),
    )


def _problems(figures: Mapping[str, Any], account: AuditReport, scenario: Scenario) -> list[str]:
    """What the demo sets out to show and did not."""
    problems = []
    if not account.ok:
        problems.append(
            f"the audit failed: {account.models[0].faults} faults, {account.models[0].in_flight} in flight"
        )
    lead = figures["label_lead_rows_min"]
    if lead is not None and lead < scenario.label_delay_rows:
        problems.append(
            f"a label was known {lead} rows after its request, before its delay of {scenario.label_delay_rows}"
        )
    if figures["paired_rows"] != figures["labels"]:
        problems.append(
            f"{figures['labels']} labels but {figures['paired_rows']} pairs of live and frozen answers"
        )
    return problems


def _summary(console: Console, figures: Mapping[str, Any], right: Mapping[str, NDArray[np.bool_]]) -> None:
    table = Table(
        title="accuracy on the same rows, with the same late labels", box=None, title_justify="left"
    )
    table.add_column("")
    table.add_column("accuracy", justify="right")
    for name, rows in right.items():
        table.add_row(name, f"{rows.mean():.4f}", style="bold" if name == "with the loop" else "")
    console.print(table)
    steps = ", ".join(f"{step} {ms}" for step, ms in figures["label_to_live_steps_ms"].items())
    console.print(
        f"{figures['requests']:,} requests: {figures['answered']:,} answered, {figures['rejected']:,} rejected, "
        f"[bold]{figures['missing']} missing, {figures['duplicated']} duplicated[/], {figures['kills']} kills\n"
        f"{figures['labels']:,} labels, {figures['drift_alerts']} drift alerts, {figures['retrains']} retrains: "
        f"{figures['update_promotions']} updates and {figures['major_promotions']} majors went live, "
        f"{figures['candidates_refused']} refused, {figures['rollbacks']} reverted\n"
        f"latency p50 {figures['latency_p50_ms']} ms, p99 {figures['latency_p99_ms']} ms; {figures['events_per_s']:,} events/s; "
        f"label to live p50 {figures['label_to_live_p50_ms']} ms ({steps}); memory {figures['peak_pss_mb']:,} MB; "
        f"set-up {figures['setup_s']} s, in all {figures['run_s']} s",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _codes(scenario: Scenario) -> NDArray[np.int64]:
    return np.unique(np.array(scenario.labels), return_inverse=True)[1].astype(np.int64)


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), 4)


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "confluent-kafka", "chdb", "tritonclient")
    )
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.platform()}, Python {platform.python_version()}, {packages}"
