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
from benchmarks.faults.command import Patience, Run, say
from benchmarks.faults.rows import Served
from benchmarks.faults.schedule import KINDS, Fault

log = logging.getLogger(__name__)

RATE_ROWS_PER_SEC: Final = 1500.0
ORPHAN_AFTER_SEC: Final = 20
PAUSE_SEC: Final = 3.0
"""Between the last hit and the end of the load, and in the control run between the hits of two bugs."""
PATIENCE: Final = Patience(quiet_sec=60.0, audit_sec=15.0, still_sec=15.0)
"""What a bug has lost does not come, however long one waits: what stands still is given up soon. Without a bug the same, or what is only
late would be taken for caught."""
TRIES: Final = 3
"""A kill has to fall between two steps: hits are aimed so that most do, and a run in which none did says nothing of the checker."""
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
    tries: int = 1


@click.command()
@click.option(
    "--bug", "names", multiple=True, type=click.Choice(sorted(BUGS)), help="This one only; may be repeated."
)
@click.option("--seed", default=1, show_default=True, help="Of the load.")
@click.option(
    "--tries",
    type=click.IntRange(min=1),
    default=TRIES,
    show_default=True,
    help="Runs in which a bug may be caught.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(names: tuple[str, ...], seed: int, tries: int, as_json: bool) -> None:
    """Seed one bug after another; the harness must catch each, and find nothing without one.

    The exit code is 1 if a bug is not caught, or if the run without a bug, under the same faults, finds one.
    """
    # That the broker is away is no news here.
    logging.getLogger("librdkafka").setLevel(logging.CRITICAL)
    chosen = {name: BUGS[name] for name in names or BUGS}
    control, folder = _run(None, in_a_row(chosen.values()), seed)
    _tidy(folder, keep=not control["ok"])
    say(_without(control))
    verdicts = []
    for name, bug in chosen.items():
        for attempt in range(1, tries + 1):
            found, folder = _run(name, bug.hits, seed)
            verdict = judge(name, bug, found, control["broken"])._replace(tries=attempt)
            _tidy(folder, keep=not verdict.caught)
            say(_line(verdict))
            if verdict.caught:
                break
        verdicts.append(verdict)
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
        click.echo(_without(control))
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


def _run(name: str | None, hits: Sequence[Hit], seed: int) -> tuple[dict[str, Any], Path]:
    """The harness's result, of a run that did not come to its end what ended it; and the folder with its data."""
    say(f"— {name or 'no bug'}: {len(hits)} faults")
    folder = Path(tempfile.mkdtemp(prefix="tidemill-bugs-"))
    run = Run(folder, plan(hits), seed, RATE_ROWS_PER_SEC, Served(ORPHAN_AFTER_SEC), name, PATIENCE)
    try:
        found = run.run(end_sec(hits))
    except Exception as error:
        # Whatever a bug brings about is told of that bug; the others are still to be seen.
        log.exception("%s did not come to its end", name or "no bug")
        problem = f"{type(error).__name__}: {error}"
        found = {"ok": False, "broken": {}, "problems": [problem], "faults": 0, "load_sec": 0.0}
    run.write_faults()
    return found, folder


def _tidy(folder: Path, *, keep: bool) -> None:
    if keep:
        say(f"data, logs and faults.json are kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _without(control: dict[str, Any]) -> str:
    why = {name: control.get(name) for name in ("broken", "problems", "audit", "examples")}
    return f"without a bug, {control['faults']} faults: {'clean' if control['ok'] else f'NOT CLEAN: {why}'}"


def _line(verdict: Verdict) -> str:
    figures = ", ".join(f"{name} {count:,}" for name, count in verdict.figures.items()) or "nothing"
    problems = "".join(f"; {problem}" for problem in verdict.problems)
    again = f" (run {verdict.tries})" if verdict.tries > 1 else ""
    return f"{'caught    ' if verdict.caught else 'NOT CAUGHT'}  {verdict.bug:28} {figures}{problems}{again}"
