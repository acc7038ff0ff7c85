"""What exactly-once costs: the gateway over a backlog, and the same gateway without transactions over an equal one, in turns."""

from __future__ import annotations

import sys
from typing import Final

from benchmarks.deploy import deploy
from benchmarks.load import bodies, produce_backlog, request_topic
from benchmarks.meter import Committed, watch
from benchmarks.report import Line, Result, median, progress
from benchmarks.stages import Bench, Running, Service, bench, running
from compose.embedded.stack import SERVICES
from inference.source import GROUP
from schemas.spec import load_spec

SUBJECT: Final = "floats_8"
ROWS: Final = 400_000
WARM_ROWS: Final = 200_000
TURNS: Final = 3
EXACTLY, AT_LEAST = "exactly once", "at least once"


def measure(seed: int, rows: int = ROWS, turns: int = TURNS) -> Result:
    """Rows per second of both, alternating; `ratio` is at-least-once to exactly-once."""
    per_sec: dict[str, list[float]] = {EXACTLY: [], AT_LEAST: []}
    with bench([SUBJECT]) as at:
        spec = load_spec(at.settings.models_dir / SUBJECT)
        deploy(at.settings, SUBJECT, seed=seed)
        pool = bodies(spec, "json", seed)
        for turn in range(turns + 1):
            for name in (EXACTLY, AT_LEAST) if turn % 2 else (AT_LEAST, EXACTLY):
                backlog = produce_backlog(
                    at.settings, request_topic(SUBJECT), pool, rows if turn else WARM_ROWS
                )
                committed = Committed(at.settings, GROUP, backlog)
                gateway = Service(at, "gateway") if name == EXACTLY else _mutant(at)
                with running(gateway):
                    run = watch(
                        committed, backlog.records, {"gateway": gateway.pid} | at.pids(),
                        rows_per_record=backlog.rows_per_record, alive=gateway.check,
                    )  # fmt: skip
                committed.close()
                progress(
                    f"{'turn ' + str(turn) if turn else 'warming'}: {name}: {run.rows_per_sec:,.0f} rows/s"
                )
                if turn:
                    per_sec[name].append(run.rows_per_sec)
    exactly, at_least = (median(per_sec[name]) or 0.0 for name in (EXACTLY, AT_LEAST))
    return Result(
        benchmark="faults --cost",
        figures={"exactly_once_per_sec": exactly, "at_least_once_per_sec": at_least, "ratio": at_least / exactly},
        lines=[Line(name, values, "rows/s") for name, values in per_sec.items()],
        seed=seed,
        turns=turns,
    )  # fmt: skip


def _mutant(at: Bench) -> Running:
    command = [
        sys.executable,
        "-P",
        "-m",
        "benchmarks.faults.mutant",
        "at_least_once",
        *SERVICES["gateway"].arguments,
    ]
    environment = at.settings.environment() | {"OMP_NUM_THREADS": "1", "TIDEMILL_SLOT": "0"}
    return Running("gateway-at-least-once", command, environment, at.folder)
