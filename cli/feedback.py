"""`tidemill feedback`: say one thing about one prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from cli.context import settings
from cli.options import data_option
from schemas.errors import UserError
from schemas.spec import ModelSpec, load_spec
from tidemill import Client


@click.command()
@click.argument("model")
@click.argument("prediction_id", metavar="[ID]", default="")
@click.option("--request", "request_id", default="", help="Name the request by its own id instead of ID.")
@click.option("--label", default=None, help="What was true: a class, or a number for a regression.")
@click.option("--correction", default=None, help="As a label, from a person who corrects the answer.")
@click.option("--rating", type=click.IntRange(1, 5), default=None, help="1 to 5.")
@click.option("--thumb", type=click.Choice(["up", "down"]), default=None, help="A thumb.")
@click.option("--comment", default=None, help="A text.")
@click.option(
    "--signal", default=None, metavar="NAME=VALUE", help="An implicit signal, such as dwell_sec=12.5."
)
@click.option("--key", default=None, help="The key of the request, if it had one.")
@data_option
def feedback(
    model: str, prediction_id: str, request_id: str, label: str | None, correction: str | None, rating: int | None,
    thumb: Literal["up", "down"] | None, comment: str | None, signal: str | None, key: str | None, data_dir: Path,
) -> None:  # fmt: skip
    """Send feedback on the prediction ID (printed by `produce --wait`) of MODEL."""
    found = settings(data_dir)
    spec = load_spec(found.models_dir / model)
    with Client(found) as client:
        client.feedback(
            model, prediction_id=prediction_id, request_id=request_id,
            label=_truth(label, spec), correction=_truth(correction, spec),
            rating=rating, thumb=thumb, comment=comment, signal=_signal(signal), key=key,
        )  # fmt: skip
    click.echo(f"feedback sent to {model}")


def _truth(text: str | None, spec: ModelSpec) -> str | float | None:
    """The label as the spec has it: one of its classes, or a number for a regression."""
    if text is None:
        return None
    truth = _number(text) if spec.task == "regression" else text
    if isinstance(truth, str) and truth not in spec.classes:
        raise UserError(f"{spec.name}: found {text!r}, expected {', '.join(spec.classes) or 'a number'}")
    return truth


def _signal(text: str | None) -> tuple[str, str | float] | None:
    if text is None:
        return None
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise click.BadParameter(f"found {text!r}, expected NAME=VALUE", param_hint="--signal")
    return name, _number(value)


def _number(text: str) -> str | float:
    """A number if it reads as one, else the text."""
    try:
        return float(text)
    except ValueError:
        return text
