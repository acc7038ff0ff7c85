"""`tidemill demo`: a real data stream through the whole loop, with and without it, and a report of what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from cli.options import json_option
from compose.embedded.parts import STATE_DIR
from schemas.errors import UserError

DEFAULT_ROWS_PER_SEC: Final = {"electricity": 200.0, "reviews": 100.0}
"""Slow enough that an update is live within a few dozen rows of its labels, fast enough to watch."""


class NotProven(UserError):
    """The demo ran, and what it set out to show does not hold."""

    exit_code = 1


class Speed(click.ParamType):
    """Rows a second, or `max`."""

    name = "N|max"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        if value is None or value == "max":
            return None
        try:
            rows_per_sec = float(str(value))
        except ValueError:
            rows_per_sec = 0.0
        if rows_per_sec <= 0:
            self.fail(f"found {value!r}, expected rows a second, or max", param, ctx)
        return rows_per_sec


@click.command()
@click.option(
    "--scenario", type=click.Choice(list(DEFAULT_ROWS_PER_SEC)), default="electricity", show_default=True,
    help="electricity: prices that rise or fall. reviews: Chinese reviews of books, then hotels, then electronics.",
)  # fmt: skip
@click.option(
    "--speed", type=Speed(), default=None, show_default="200, reviews 100", help="Rows a second, or max."
)
@click.option(
    "--seed", type=click.IntRange(0, (1 << 31) - 1), default=1, show_default=True, help="Random seed."
)
@click.option(
    "--data", "data_dir", type=click.Path(path_type=Path, file_okay=False), default=None,
    show_default=".tidemill/demo/SCENARIO", help="Folder of the demo's stack; what an earlier demo left there is removed.",
)  # fmt: skip
@click.option(
    "--references/--no-references",
    default=True,
    show_default=True,
    help="Compute what else could have been done.",
)
@click.option(
    "--keep",
    is_flag=True,
    help="Leave the stack running, to look around in it; `tidemill down --data …` ends it.",
)
@json_option
@click.pass_context
def demo(
    ctx: click.Context, scenario: str, speed: float | None, seed: int, data_dir: Path | None, references: bool,
    keep: bool, as_json: bool,
) -> None:  # fmt: skip
    """Replay a real data stream through the whole loop and report."""
    from cli.demo.run import Options, run  # imports torch and matplotlib: seconds that help need not wait

    if ctx.get_parameter_source("speed") is click.core.ParameterSource.DEFAULT:
        speed = DEFAULT_ROWS_PER_SEC[scenario]
    options = Options(scenario, speed, seed, data_dir or STATE_DIR / "demo" / scenario, references, keep)
    figures, problems = run(options, Console(stderr=as_json))
    if as_json:
        click.echo(json.dumps(figures))
    if problems:
        raise NotProven("; ".join(problems))
