"""What exactly-once costs: the gateway over a backlog, and the same gateway without transactions over an equal one, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Final

from benchmarks.deploy import deploy
from benchmarks.load import HeldBacklog, bodies, request_topic
from benchmarks.meter import Committed, watch
from benchmarks.report import Line, Result, median, progress
from benchmarks.stages import Service, bench, running, wait_shared
from inference.source import GROUP
from schemas.spec import load_spec

SUBJECT: Final = "floats_8"
ROWS: Final = 600_000
WARM_ROWS: Final = 300_000
TURNS: Final = 3
EXACTLY, AT_LEAST = "exactly once", "at least once"
_THROUGH: Final[dict[str, Sequence[str]]] = {
    EXACTLY: (),
    AT_LEAST: ("benchmarks.faults.mutant", "at_least_once"),
}


def measure(seed: int, rows: int = ROWS, turns: int = TURNS) -> Result:
    """Rows per second of both, alternating; `ratio` is at-least-once to exactly-once."""
    per_sec: dict[str, list[float]] = {EXACTLY: [], AT_LEAST: []}
    with bench([SUBJECT]) as at:
        spec = load_spec(at.settings.models_dir / SUBJECT)
        deploy(at.settings, SUBJECT, seed=seed)
        pool, requests = bodies(spec, "json", seed), request_topic(SUBJECT)
        for turn in range(turns + 1):
            for name in (EXACTLY, AT_LEAST) if turn % 2 else (AT_LEAST, EXACTLY):
                held = HeldBacklog(at.settings, requests, pool, rows if turn else WARM_ROWS)
                gateway = Service(at, "gateway", through=_THROUGH[name])
                with running(gateway):
                    wait_shared([gateway], requests, spec.serve.partitions)
                    backlog = held.release()
                    with closing(Committed(at.settings, GROUP, backlog)) as committed:
                        run = watch(
                            committed, backlog.records, {"gateway": gateway.pid} | at.pids(),
                            rows_per_record=backlog.rows_per_record, alive=gateway.check,
                        )  # fmt: skip
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
