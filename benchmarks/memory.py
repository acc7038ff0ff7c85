"""`tidemill bench memory`: what each process holds, idle and at the worst moment of a backlog."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any, Final

import click
import psutil

from benchmarks.deploy import deploy
from benchmarks.load import TIMES, Format, HeldBacklog, bodies, request_topic
from benchmarks.meter import Committed, watch
from benchmarks.options import FORMAT, JSON, SUBJECT, quick_is, seed_of
from benchmarks.report import Line, Result, progress, show
from benchmarks.stages import Service, bench, running
from compose.embedded.stack import SERVICES
from inference.source import GROUP
from schemas.spec import load_spec

BACKLOGS: Final = {
    "floats_8": (100_000, 800_000),
    "floats_20": (50_000, 400_000),
    "floats_784": (15_000, 60_000),
    "text_4k": (5_000, 20_000),
}
"""Rows, of JSON. Whether a gateway's memory depends on its backlog is seen from two."""
SETTLE_SEC: Final = 3.0


@click.command()
@SUBJECT
@FORMAT
@seed_of()
@quick_is("Backlogs of a quarter")
@JSON
def command(subject: str, kind: Format, seed: int, quick: bool, as_json: bool) -> None:
    """Memory of each process, idle and under a backlog."""
    show(measure(subject, kind, 4 if quick else 1, seed)._replace(quick=quick), as_json)


def measure(subject: str, kind: Format, divisor: int, seed: int) -> Result:
    """Idle, then the backlogs from the smallest, each with a gateway that has just begun."""
    peaks: dict[str, list[float]] = {}
    with bench([subject]) as at:
        spec = load_spec(at.settings.models_dir / subject)
        deploy(at.settings, subject, seed=seed)
        pool = bodies(spec, kind, seed)
        services = [Service(at, name) for name in SERVICES]
        with running(*services):
            for service in services:
                service.wait_ready()
            progress("idle")
            time.sleep(SETTLE_SEC)  # what was needed to start is given back
            pids = {service.name: service.pid for service in services} | at.pids()
            idle = {name: _private_mb(pid) for name, pid in pids.items()}
        backlogs = [rows * TIMES[kind] // divisor for rows in BACKLOGS[subject]]
        for rows in backlogs:
            progress(f"a backlog of {rows:,} rows")
            held = HeldBacklog(at.settings, request_topic(subject), pool, rows)
            at_work = [Service(at, name) for name in ("gateway", "sink", "worker")]
            pids = {service.name: service.pid for service in at_work} | at.pids()
            with running(*at_work):
                for service in at_work:
                    service.wait_ready()
                backlog = held.release()
                with closing(Committed(at.settings, GROUP, backlog)) as committed:
                    run = watch(committed, backlog.records, pids)
            for name, size in run.rss_bytes.items():
                peaks.setdefault(name, []).append(size / 1e6)
    figures: dict[str, Any] = {
        "subject": subject,
        "format": kind,
        "gateway_mb_max": max(peaks["gateway"]),
        "gateway_mb_by_backlog": {
            f"{rows:,}": round(mb, 1) for rows, mb in zip(backlogs, peaks["gateway"], strict=True)
        },
        "idle_mb": sum(idle.values()),
    }
    lines = [
        Line(f"idle: {name}", [mb], "MB", "proportional share of shared pages") for name, mb in idle.items()
    ]
    lines += [
        Line(f"backlog of {backlogs[-1]:,}: {name}", [values[-1]], "MB", "resident, the most")
        for name, values in peaks.items()
        if name != "benchmark"
    ]
    return Result("memory", figures, lines, seed)


def _private_mb(pid: int) -> float:
    """Proportional set size of a process and its children."""
    process = psutil.Process(pid)
    return (
        float(sum(each.memory_full_info().pss for each in [process, *process.children(recursive=True)])) / 1e6
    )
