"""`tidemill produce`: send one request, or a line of standard input each."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from cli.context import settings
from cli.options import data_option
from schemas.requests import Prediction, Rejected
from tidemill import Client

REJECTED_EXIT_CODE = 1


@click.command()
@click.argument("model")
@click.argument("request_json", metavar="JSON")
@click.option("--key", default=None, help="The entity: tenant, session, account. Keeps its order.")
@click.option(
    "--wait", "wait_sec", type=click.FloatRange(min=0, min_open=True), is_flag=False, flag_value=30.0, default=None,
    help="Wait for the answers, 30 s unless given; exit code 1 if one is a rejection.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print answers as JSON, one a line.")
@data_option
def produce(
    model: str, request_json: str, key: str | None, wait_sec: float | None, as_json: bool, data_dir: Path
) -> None:  # fmt: skip
    """Send JSON, an object of features, as a request to MODEL. With JSON "-": every line of standard input.

    The record is sent as it is written, so that a faulty one shows how it is rejected. Try:

    tidemill produce electricity '{"period": 0.5, "nswprice": 0.06, "nswdemand": 0.4, "vicprice": 0.003, "vicdemand": 0.4, "transfer": 0.4}' --wait
    """
    if request_json == "-":
        lines = [line for line in click.get_text_stream("stdin").read().splitlines() if line.strip()]
    else:
        lines = [request_json]
    answers = send(Client(settings(data_dir)), model, lines, key, wait_sec)
    for answer in answers:
        click.echo(msgspec.json.encode(answer).decode() if as_json else described(answer))
    if wait_sec is None and not as_json:
        click.echo(f"{len(lines)} request{'s' if len(lines) != 1 else ''} sent to {model}")
    if any(answer.rejected for answer in answers):
        sys.exit(REJECTED_EXIT_CODE)


def send(
    client: Client, model: str, lines: list[str], key: str | None, wait_sec: float | None
) -> list[Prediction]:
    """Send `lines`; return their predictions in order if `wait_sec` is given."""
    if wait_sec is None:
        for line in lines:
            client.produce(model, line.encode(), key=key)
        client.flush()
        return []
    with client.predictions(model) as reader:
        sent = [client.produce(model, line.encode(), key=key) for line in lines]
        client.flush()
        return reader.wait_for([each.prediction_id for each in sent], wait_sec)


def described(answer: Prediction) -> str:
    """One line for a person."""
    rejected: Rejected | None = answer.rejected
    if rejected is not None:
        return f"rejected: {rejected.message or rejected.reason}"
    said = f"{answer.label} {answer.score:.4f}" if answer.label else f"{answer.score}"
    return f"{said}  version {answer.version}  prediction {answer.prediction_id}"
