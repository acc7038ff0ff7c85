"""`tidemill replay`: run requests that were asked before through any version, and compare with what was answered."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cli.context import settings as find_settings
from cli.options import Moment, data_option, json_option
from cli.replay_report import reported, show
from inference.ranges import Bound
from inference.replay import Progress, run
from inference.replay_plan import Plan, plan
from runtime.settings import Settings

_OFFSETS: Final = re.compile(r"\d+:\d+(?:,\d+:\d+)*\Z")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")


class Bounds(Moment):
    """A time, or offsets."""

    expected: ClassVar[str] = f"{Moment.expected}, offsets (partition:offset,…), earliest or now"

    def read(self, text: str, now: datetime) -> Bound:
        """What `text` means; ValueError if it means nothing.

        >>> noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
        >>> Bounds().read("0:12,1:7", noon), Bounds().read("now", noon)
        ({0: 12, 1: 7}, 'latest')
        """
        if text == "earliest":
            return "earliest"
        if text == "now":
            return "latest"
        if _OFFSETS.match(text):
            return {int(p): int(offset) for p, _, offset in (pair.partition(":") for pair in text.split(","))}
        at_ms: int = super().read(text, now)
        return at_ms


@click.command()
@click.option("--model", required=True, help="Whose requests.")
@click.option(
    "--from",
    "start",
    type=Bounds(),
    required=True,
    help="First request: a time, an age, offsets, or earliest.",
)
@click.option(
    "--to", "end", type=Bounds(), default="now", show_default=True, help="Up to here, not included."
)
@click.option("--version", default="", help="Version or artifact that answers; by default the live champion.")
@click.option(
    "--run",
    "name",
    default="",
    metavar="NAME",
    help="Begin the run's id with NAME instead of model and version.",
)
@click.option(
    "--wait", "wait_sec", type=click.FloatRange(min=0), default=120.0, show_default=True, metavar="SEC",
    help="How long to wait until ClickHouse has the rows.",
)  # fmt: skip
@data_option
@json_option
def replay(
    model: str, start: Bound, end: Bound, version: str, name: str, wait_sec: float, data_dir: Path, as_json: bool
) -> None:  # fmt: skip
    """Run a range of MODEL's requests that Kafka still has through any version that the artifact store still has.

    Results go to the table `replays` under a run id, never to predictions, metrics, outcomes or drift. The id follows from model, version
    and offsets: the same replay gives the same rows, however often it is run or killed. Times are the records' own; both ends may also
    be offsets, such as 0:1200,1:900 (partition:offset; partitions that are not named are left out).

    Requests that an operator redrove are left out: they are in a topic of their own, and their originals are replayed.

    Exit codes: 1 something is away, the version fails its golden batch, or the rows are not there in time; 2 a mistake.
    """
    if name and not _NAME.match(name):
        raise click.UsageError(
            f"--run: found {name!r}, expected up to 64 letters, digits, dots, dashes and underscores"
        )
    found = find_settings(data_dir)
    planned = plan(found, model, start, end, version, name)
    started = time.monotonic()
    done = asyncio.run(_run(found, planned, quiet=as_json))
    took_sec = time.monotonic() - started
    report = reported(found, planned, done, took_sec, wait_sec)
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        show(report)


async def _run(found: Settings, planned: Plan, quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(planned.run_id, total=planned.range.offsets, state="")

        def tell(now: Progress) -> None:
            state = f"waits: {now.held}" if now.held else f"{now.rows:,} rows"
            bar.update(task, completed=now.offsets, state=state)

        return await run(found, planned, tell)
