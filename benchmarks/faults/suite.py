"""`tidemill bench bugs`: the checker is itself checked. One run of the harness for each seeded bug, each of which it must catch."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from benchmarks.faults.bugs.table import BUGS, Bug, Hit
from benchmarks.faults.command import PATIENT, Patience, Run, say
from benchmarks.faults.schedule import KINDS, Fault
from schemas.errors import TidemillError

RATE_ROWS_PER_SEC: Final = 1500.0
ORPHAN_AFTER_SEC: Final = 20
PAUSE_SEC: Final = 3.0
"""Between the last hit and the end of the load, and in the control run between the hits of two bugs."""
SHORT: Final = Patience(quiet_sec=40.0, labels_sec=8.0, metrics_sec=12.0, orders_sec=12.0, audit_sec=5.0)
"""What a bug has lost does not come, however long one waits."""


SURPLUS: Final = frozenset({"duplicated", "shadow_duplicated", "unrequested", "torn", "misordered", "wrong"})
"""Figures of what is there. The others can also mean that a stage stood still, so they count only if all went on."""


class Verdict(NamedTuple):
    """What a run said of a bug."""

    bug: str
    caught: bool
    figures: dict[str, int]
    """Those of the account that are not 0 and should be."""
    problems: list[str]
    """What else went wrong: told, and not counted as caught."""
    faults: int
    took_sec: float


@click.command()
@click.option(
    "--bug", "names", multiple=True, type=click.Choice(sorted(BUGS)), help="This one only; may be repeated."
)
@click.option("--seed", default=1, show_default=True, help="Of the load.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(names: tuple[str, ...], seed: int, as_json: bool) -> None:
    """Seed one bug after another; the harness must catch each, and find nothing without one.

    The exit code is 1 if a bug is not caught, or if the run without a bug, under the same faults, finds one.
    """
    # That the broker is away is no news here.
    logging.getLogger("librdkafka").setLevel(logging.CRITICAL)
    chosen = {name: BUGS[name] for name in names or BUGS}
    control = _run(None, in_a_row(chosen.values()), seed, PATIENT)
    verdicts = []
    for name, bug in chosen.items():
        verdict = judge(name, bug, _run(name, bug.hits, seed, SHORT), control["broken"])
        verdicts.append(verdict)
        say(_line(verdict))
    ok = control["ok"] and all(verdict.caught for verdict in verdicts)
    if as_json:
        click.echo(json.dumps({
            "ok": ok,
            "seed": seed,
            "bugs": len(verdicts),
            "caught": sum(verdict.caught for verdict in verdicts),
            "control": {"ok": control["ok"], "faults": control["faults"], "broken": control["broken"], "problems": control["problems"]},
            "verdicts": [verdict._asdict() for verdict in verdicts],
        }))  # fmt: skip
    else:
        without = "clean" if control["ok"] else f"NOT CLEAN: {control['broken']} {control['problems']}"
        click.echo(f"without a bug, {control['faults']} faults: {without}")
        click.echo("\n".join(map(_line, verdicts)))
    sys.exit(0 if ok else 1)


def in_a_row(bugs: Iterable[Bug]) -> list[Hit]:
    """The hits of all bugs, those of one after those of another, equal ones once."""
    hits: list[Hit] = []
    start = 0.0
    for group in dict.fromkeys(bug.hits for bug in bugs):
        hits += [hit._replace(at_sec=start + hit.at_sec) for hit in group]
        start += end_sec(group)
    return hits


def end_sec(hits: Sequence[Hit]) -> float:
    """When the load of these hits ends."""
    return max((hit.at_sec + hit.for_sec for hit in hits), default=0.0) + PAUSE_SEC


def plan(hits: Sequence[Hit]) -> list[Fault]:
    """The hits as a schedule, in order of their begin."""
    recovery = {kind.name: kind.recovery for kind in KINDS}
    ordered = sorted(hits, key=lambda hit: hit.at_sec)
    return [
        Fault(number, hit.kind, hit.target, hit.at_sec, hit.for_sec, recovery[hit.kind])
        for number, hit in enumerate(ordered)
    ]


def judge(name: str, bug: Bug, found: dict[str, Any], uncontrolled: dict[str, int]) -> Verdict:
    """Caught is a bug by one of its own figures, which must be 0 without it."""
    telling = SURPLUS if found["problems"] else found["broken"].keys()
    caught = any(
        figure in found["broken"] and figure in telling and figure not in uncontrolled
        for figure in bug.caught_by
    )
    return Verdict(name, caught, found["broken"], found["problems"], found["faults"], found["load_sec"])


def _run(name: str | None, hits: Sequence[Hit], seed: int, patience: Patience) -> dict[str, Any]:
    """The harness's result; of a run that did not come to its end, what ended it."""
    say(f"— {name or 'no bug'}: {len(hits)} faults")
    folder = Path(tempfile.mkdtemp(prefix="tidemill-bugs-"))
    try:
        run = Run(folder, plan(hits), seed, RATE_ROWS_PER_SEC, ORPHAN_AFTER_SEC, name, patience)
        return run.run(end_sec(hits))
    except (TidemillError, TimeoutError) as error:
        return {
            "ok": False,
            "broken": {},
            "problems": [f"{type(error).__name__}: {error}"],
            "faults": 0,
            "load_sec": 0.0,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _line(verdict: Verdict) -> str:
    figures = ", ".join(f"{name} {count:,}" for name, count in verdict.figures.items()) or "nothing"
    problems = "".join(f"; {problem}" for problem in verdict.problems)
    return f"{'caught    ' if verdict.caught else 'NOT CAUGHT'}  {verdict.bug:28} {figures}{problems}"
