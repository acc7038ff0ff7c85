"""`tidemill status`: one row a process, one a stage, and the route of each model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cli.options import data_option, json_option
from compose.embedded import running


@click.command()
@data_option
@json_option
def status(data_dir: Path, as_json: bool) -> None:
    """Show processes, lag, oldest age, last error, and each model's route. Exit code 1 unless all is ready."""
    found = running.status(data_dir)
    if as_json:
        click.echo(json.dumps({**found, "routes": routes(found)}))
    else:
        console = Console() if sys.stdout.isatty() else Console(width=200)  # a pipe has no width of its own
        console.print(process_table(found))
        if routes(found):
            console.print(route_table(routes(found)))
    if not found["ready"]:
        click.get_current_context().exit(1)


def routes(found: Mapping[str, Any]) -> dict[str, Any]:
    """Each model's route, from the controller's own health."""
    for row in found["processes"]:
        if row["process"] == "control":
            known: dict[str, Any] = row["detail"].get("detail", {}).get("routes", {})
            return known
    return {}


def process_table(found: Mapping[str, Any]) -> Table:
    table = Table(
        "process",
        "state",
        "pid",
        "restarts",
        "uptime",
        "lag",
        "oldest",
        "last error",
        box=None,
        pad_edge=False,
    )
    for row in found["processes"]:
        table.add_row(*(str(cell) for cell in process_cells(row)))
        for cells in stage_cells(row):
            table.add_row(*cells, style="dim")
    return table


def process_cells(row: Mapping[str, Any]) -> Iterator[Any]:
    stages = row["detail"].get("stages", {}).values()
    yield row["process"]
    yield row["state"]
    yield row["pid"] or ""
    yield row["restarts"]
    yield duration(row["uptime_sec"])
    yield sum(stage["lag_records"] for stage in stages) if stages else ""
    yield duration(max(stage["oldest_age_sec"] for stage in stages)) if stages else ""
    yield row["last_error"]


def stage_cells(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Stages with something to say: behind, paused or halted."""
    for name, stage in row["detail"].get("stages", {}).items():
        if stage["lag_records"] or stage["state"] != "running":
            lag, age = str(stage["lag_records"]), duration(stage["oldest_age_sec"])
            yield (f"  {name}", stage["state"], "", "", "", lag, age, stage["note"])


def route_table(known: Mapping[str, Mapping[str, Any]]) -> Table:
    """What matters of a route at a glance; `--json` has all of it."""
    table = Table("model", "stage", "champion", "arms", "revision", "", box=None, pad_edge=False)
    for model, route in known.items():
        arms = ", ".join(
            f"{arm.get('name', '')} {arm.get('version', '')}".strip() for arm in route.get("arms", [])
        )
        frozen = "frozen" if route.get("frozen") else ""
        cells = (
            route.get("stage", ""),
            route.get("champion", "") or "none yet",
            arms,
            str(route.get("revision", "")),
        )
        table.add_row(model, *cells, frozen)
    return table


def duration(seconds: float | None) -> str:
    """
    >>> duration(None), duration(0.25), duration(75), duration(7322)
    ('', '0.2 s', '1:15', '2:02:02')
    """
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
