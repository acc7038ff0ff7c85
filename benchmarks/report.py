"""What a benchmark found: one object, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from benchmarks.goals import Met, compare
from benchmarks.machine import machine, versions


class Line(NamedTuple):
    """One line of the table."""

    what: str
    values: Sequence[float]
    """One a turn."""
    unit: str
    note: str = ""


class Result(NamedTuple):
    """What was found."""

    benchmark: str
    figures: Mapping[str, Any]
    """What `--json` prints beside machine, versions and the turns."""
    lines: Sequence[Line]
    seed: int | None = None
    turns: int = 1
    quick: bool = False
    """A first look, which no goal binds."""


def progress(text: str) -> None:
    """Say what is being done, on stderr."""
    click.echo(f"  {text}", err=True)


def as_object(result: Result) -> dict[str, Any]:
    """The result as one JSON object."""
    return {
        "benchmark": result.benchmark,
        **{name: _rounded(value) for name, value in result.figures.items()},
        "measured": {line.what: [_rounded(value) for value in line.values] for line in result.lines},
        "units": {line.what: line.unit for line in result.lines},
        "goals": [goal._asdict() for goal in compare(result.benchmark, result.figures)],
        "turns": result.turns,
        "quick": result.quick,
        "seed": result.seed,
        "machine": machine(),
        "versions": versions(),
    }


def show(result: Result, as_json: bool) -> None:
    """Print the table, the figures, machine and versions; with `as_json` the last line is one object. Exit code 1 if a goal is missed."""
    found = tell(result, as_json)
    if as_json:
        click.echo(json.dumps(found))
    if missed(result):
        sys.exit(1)


def missed(result: Result) -> list[str]:
    """The goals that this run had to meet and did not, a line each."""
    goals = () if result.quick else compare(result.benchmark, result.figures)
    return [_told(goal) for goal in goals if not goal.met]


def tell(result: Result, as_json: bool) -> dict[str, Any]:
    """Print all but the object, on stderr if that will follow; return it."""
    found = as_object(result)
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 160)
    console.print(_machine_line(found["machine"]))
    console.print(", ".join(f"{name} {version}" for name, version in found["versions"].items()), style="dim")
    table = Table("measured", "median", "unit", "turns", "", box=None, pad_edge=False)
    for column in table.columns[1:2]:
        column.justify = "right"
    for line in result.lines:
        turns = " ".join(text(value) for value in line.values) if len(line.values) > 1 else ""
        table.add_row(line.what, text(median(line.values)), line.unit, turns, line.note)
    console.print(table)
    for name, value in result.figures.items():
        console.print(
            f"{name} = {value if isinstance(value, str | dict | list) else text(value)}", highlight=False
        )
    for goal in compare(result.benchmark, result.figures):
        console.print(_told(goal), style="" if goal.met else "bold red", highlight=False)
    return found


def median(values: Iterable[float]) -> float | None:
    """None of nothing."""
    known = list(values)
    return statistics.median(known) if known else None


def ratio(pairs: Iterable[tuple[float, float]]) -> float | None:
    """The median of ours by theirs, of pairs from one turn each; None of none.

    >>> ratio(zip([10.0, 40.0], [5.0, 10.0]))
    3.0
    """
    return median(ours / theirs for ours, theirs in pairs if theirs)


def in_turns(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[tuple[float, float]]:
    """Pairs of the turns in which both were measured.

    >>> in_turns({1: 10.0, 2: 40.0}, {2: 10.0})
    [(40.0, 10.0)]
    """
    return [(ours[turn], theirs[turn]) for turn in sorted(ours.keys() & theirs.keys())]


def text(value: Any) -> str:
    """A figure with as many digits as it deserves."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _told(goal: Met) -> str:
    return f"{'met' if goal.met else 'MISSED'}: {goal.figure} = {text(goal.found)}, asked {goal.bound} {text(goal.value)}"


def _machine_line(found: Mapping[str, Any]) -> str:
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB, no GPU used, {found['system']}, "
        f"Python {found['python']}, load before {found['load_before']}"
    )
