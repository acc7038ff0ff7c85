"""Options that benchmarks share, as decorators of their commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import click

from benchmarks.load import FORMATS
from benchmarks.subject import SUBJECTS

Option: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]

SUBJECT: Final[Option] = click.option(
    "--subject",
    type=click.Choice(list(SUBJECTS)),
    default="floats_8",
    show_default=True,
    help="What a request holds.",
)
FORMAT: Final[Option] = click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="json",
    show_default=True,
    help="How it is encoded.",
)
TURNS: Final[Option] = click.option(
    "--turns",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Turns, of which the median counts.",
)
BATCH_ROWS: Final[Option] = click.option(
    "--batch-rows",
    type=click.IntRange(1, 16_384),  # more are more than the topic takes at once
    help="Rows of an observation's record.  [default: the model's serve.max_batch_rows, as the gateway writes of a backlog]",
)
JSON: Final[Option] = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object, in the last line."
)


def seed_of(drawn: str = "the requests and the weights") -> Option:
    """What is drawn by it."""
    return click.option("--seed", default=0, show_default=True, help=f"Of {drawn}.")


def quick_is(means: str) -> Option:
    """A first look, for which less is measured."""
    return click.option("--quick", is_flag=True, help=f"{means}.")
