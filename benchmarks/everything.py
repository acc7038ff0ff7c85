"""`tidemill bench all`: every benchmark, one after the other, and an HTML page with a picture of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from benchmarks import (
    ingest,
    labels,
    latency,
    live,
    memory,
    page,
    processors,
    scale,
    startup,
    steps,
    throughput,
)
from benchmarks.load import Format
from benchmarks.options import quick_is, seed_of
from benchmarks.report import Result, missed, progress, tell
from compose.embedded.parts import ROOT
from schemas.errors import TidemillError

FOLDER: Final = ROOT / "report" / "bench"


def _throughput(quick: bool, seed: int) -> Result:
    rows = throughput.default_rows("floats_8", "json", quick)
    return throughput.measure("floats_8", "json", "all", rows, 1, 1 if quick else 3, not quick, seed, quick)


def _wide(kind: Format, quick: bool, seed: int) -> Result:
    rows = throughput.default_rows("floats_784", kind, quick)
    return throughput.measure("floats_784", kind, "gateway", rows, 1, 1 if quick else 3, False, seed, quick)


_WIDE: Final[dict[Format, str]] = {
    "json": "throughput of 784 floats",
    "arrow": "throughput of 784 floats as Arrow",
}

ALL: Final[Mapping[str, Callable[[bool, int], Result]]] = {
    "throughput": _throughput,
    _WIDE["json"]: partial(_wide, "json"),
    _WIDE["arrow"]: partial(_wide, "arrow"),
    "steps": lambda quick, seed: steps.measure("floats_8", "json", seed, steps.QUICK_STEP_SEC if quick else steps.STEP_SEC),
    "latency": lambda quick, seed: latency.measure(
        latency.QUICK_SEC if quick else latency.SEC, 1 if quick else latency.TURNS, seed, quick
    ),
    "live": lambda quick, seed: live.measure(
        live.QUICK_STEP_SEC if quick else live.STEP_SEC, live.FIRST_PER_SEC, 0 if quick else live.HALVINGS, seed, quick
    ),
    "ingest": lambda quick, seed: ingest.measure(
        ingest.QUICK_ROWS if quick else ingest.ROWS, None, 1 if quick else 3, seed
    ),
    "processors": lambda quick, seed: processors.measure(
        processors.QUICK_ROWS if quick else processors.ROWS, None, 1 if quick else 3, seed
    ),
    "labels": lambda quick, seed: labels.measure(
        labels.QUICK_PREDICTIONS if quick else labels.PREDICTIONS, labels.QUICK_LABELS if quick else labels.LABELS,
        1 if quick else 3, seed,
    ),
    "scale": lambda quick, seed: scale.measure(
        scale.QUICK_ROWS if quick else scale.ROWS, 1 if quick else 3, seed, quick
    ),
    "memory": lambda quick, seed: memory.measure("floats_8", "json", 4 if quick else 1, seed),
    "startup": lambda quick, seed: startup.measure(1 if quick else 3, seed),
}  # fmt: skip


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=FOLDER,
    show_default="report/bench",
    help="Where the page goes.",
)
@seed_of("everything random")
@quick_is("Each benchmark's quick size")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, in the last line.")
def command(folder: Path, seed: int, quick: bool, as_json: bool) -> None:
    """Run every benchmark and write a page. Exit code 1 if one of them failed or missed a goal, after the others."""
    found: dict[str, dict[str, Any]] = {}
    short: list[str] = []
    failed: dict[str, str] = {}
    for name, measure in ALL.items():
        progress(f"== {name} ==")
        try:
            result = measure(quick, seed)._replace(quick=quick)
        except Exception as error:  # noqa: BLE001  one that fails, however, must not cost the others: it is named here, and in the exit code
            failed[name] = (
                str(error) if isinstance(error, TidemillError) else f"{type(error).__name__}: {error}"
            )
            progress(f"{name} failed: {failed[name]}")
        else:
            found[name] = tell(result, as_json)
            short += [f"{name}: {goal}" for goal in missed(result)]
        # Written after each, so that an hour's work is not lost with its last quarter.
        written = page.write(found, failed, folder)
        progress(f"{written}")
    for line in short:
        progress(line)
    if as_json:
        click.echo(json.dumps({"benchmark": "all", "results": found, "failed": failed, "missed": short}))
    if failed or short:
        click.get_current_context().exit(1)
