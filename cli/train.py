"""`tidemill train`: rows from a file become a version, by the control room and the trainer that every other version goes through."""

from __future__ import annotations

import getpass
import json
import secrets
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cli.context import settings as find_settings
from cli.options import data_option, json_option
from runtime.clock import now_ms
from runtime.kafka import REQUEST_TIMEOUT_SEC, consumer, producer
from runtime.settings import Settings
from schemas.errors import UserError
from schemas.events import Candidate, Command, Event, Retrain, Rollout
from schemas.spec import ModelSpec, load_spec
from schemas.topics import CANDIDATES, COMMANDS, RETRAINS, ROLLOUTS
from training.files import Loaded, load_file
from training.rows import write_snapshot
from training.runs import run_files

POLL_SEC: Final = 0.1
ORDER_SEC: Final = 30.0
"""How long the control room may take to number the version."""
_ANSWERS: Final[dict[str, type[Event]]] = {
    RETRAINS.name: Retrain,
    CANDIDATES.name: Candidate,
    ROLLOUTS.name: Rollout,
}


class NotIntroduced(UserError):
    """The version was refused, or nobody answered in time."""

    exit_code = 1


class Answer(NamedTuple):
    """What became of an order."""

    candidate: Candidate
    rollout: Rollout


@click.command()
@click.argument("model")
@click.option(
    "--from", "path", type=click.Path(path_type=Path, dir_okay=False), required=True,
    help="CSV, JSON lines or Parquet with a column per feature and one for the label, oldest row first.",
)  # fmt: skip
@click.option("--label", default="label", show_default=True, help="The label's column.")
@click.option(
    "--seed", type=click.IntRange(0, (1 << 63) - 1), default=None, help="Random seed; by default a new one."
)
@click.option("--skip-bad", is_flag=True, help="Leave rows with faults out instead of refusing the file.")
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Wait until the version answers, or is refused."
)
@click.option(
    "--timeout",
    "timeout_sec",
    type=click.FloatRange(min=1),
    default=600.0,
    show_default=True,
    help="How long to wait, in seconds.",
)
@data_option
@json_option
def train(
    model: str,
    path: Path,
    label: str,
    seed: int | None,
    skip_bad: bool,
    wait: bool,
    timeout_sec: float,
    data_dir: Path,
    as_json: bool,
) -> None:
    """Train MODEL's first version, or its next major, from a file."""
    found = find_settings(data_dir)
    spec = load_spec(found.models_dir / model)
    loaded = load_file(path, spec, label)
    report(loaded, path, skip_bad, quiet=as_json)
    command = command_for(found, spec, loaded, secrets.randbits(31) if seed is None else seed)
    answers = from_now_on(found)
    try:
        send(found, command)
        order = wait_for_order(command, answers)
        console = Console(stderr=True, quiet=as_json)
        answer = wait_for_version(found, order, answers, timeout_sec, console) if wait else None
    finally:
        answers.close()
    _print(order, loaded, answer, found, as_json)


def report(loaded: Loaded, path: Path, skip_bad: bool, quiet: bool) -> None:
    """Say what is wrong with the file's rows, a line for each kind of fault.

    Raises:
        UserError: there are faults and they are not to be skipped, or nothing is left.
    """
    for finding in loaded.findings:
        click.echo(f"{path}: {finding}", err=True)
    if loaded.ignored and not quiet:
        click.echo(f"{path}: ignored columns: {', '.join(loaded.ignored)}", err=True)
    bad = loaded.read - len(loaded.rows)
    if bad and not skip_bad:
        raise UserError(
            f"{path}: {bad} of {loaded.read} rows have faults; mend them, or leave them out with --skip-bad"
        )
    if not len(loaded.rows):
        raise UserError(f"{path}: no row to train on")


def command_for(found: Settings, spec: ModelSpec, loaded: Loaded, seed: int) -> Command:
    """Write the rows' snapshot and make the command. The control room numbers the version: 1.0, or the next major."""
    return Command(
        event_id=str(uuid.uuid4()),
        model=spec.name,
        at_ms=now_ms(),
        action="train",
        by=getpass.getuser(),
        snapshot=write_snapshot(found.artifacts_dir, spec.name, loaded.rows),
        rows=len(loaded.rows),
        left_out=loaded.read - len(loaded.rows),
        seed=seed,
    )


def send(found: Settings, command: Command) -> None:
    """Put the command into `commands`, acknowledged by the broker.

    Raises:
        NotIntroduced: the broker did not take it.
    """
    client = producer(found)
    failures: list[str] = []
    client.produce(
        COMMANDS.name, msgspec.json.encode(command), command.model.encode(),
        on_delivery=lambda error, _: failures.append(error.str()) if error is not None else None,
    )  # fmt: skip
    if client.flush(30) or failures:
        raise NotIntroduced(
            f"{command.model}: Kafka did not take the command: {failures[0] if failures else 'no answer in 30 s'}"
        )


def from_now_on(found: Settings) -> Consumer:
    """A consumer of what the control room and the trainer answer from this moment."""
    client = consumer(found, f"train-{uuid.uuid4()}")
    places = []
    for topic in _ANSWERS:
        for partition in client.list_topics(topic, timeout=REQUEST_TIMEOUT_SEC).topics[topic].partitions:
            place = TopicPartition(topic, partition)
            _, place.offset = client.get_watermark_offsets(place, timeout=REQUEST_TIMEOUT_SEC)
            places.append(place)
    client.assign(places)
    return client


def wait_for_order(command: Command, answers: Consumer) -> Retrain:
    """The order that the control room made of the command.

    Raises:
        NotIntroduced: it made none in time.
    """
    for event in _events(answers, time.monotonic() + ORDER_SEC):
        if isinstance(event, Retrain) and event.evidence.get("command") == command.event_id:
            return event
    raise NotIntroduced(
        f"{command.model}: no order of the control room in {ORDER_SEC:.0f} s; it will come, the command is kept: see `tidemill status`"
    )


def wait_for_version(
    found: Settings, order: Retrain, answers: Consumer, timeout_sec: float, console: Console
) -> Answer:
    """Follow the order to its candidate, and the candidate to what was decided about it.

    Raises:
        NotIntroduced: nobody answered in time.
    """
    epochs = load_spec(found.models_dir / order.model).train.full_epochs
    deadline = time.monotonic() + timeout_sec
    lines, _ = run_files(found.artifacts_dir, order)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    candidate: Candidate | None = None
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{order.model} {order.new_version}", total=epochs, state="waits for the trainer")
        for event in _events(answers, deadline):
            bar.update(task, **_progress(lines))
            if isinstance(event, Candidate) and event.retrain_id == order.event_id:
                candidate = event
            elif isinstance(event, Rollout) and event.evidence.get("retrain") == order.event_id and candidate:
                return Answer(candidate, event)
    stage = "trainer" if candidate is None else "control room"
    raise NotIntroduced(
        f"{order.model} {order.new_version}: no answer of the {stage} in {timeout_sec:.0f} s; see `tidemill status`"
    )


def _events(answers: Consumer, deadline: float) -> Iterator[Event | None]:
    """What is answered until the deadline; None where nothing came for a moment."""
    while time.monotonic() < deadline:
        message = answers.poll(POLL_SEC)
        if message is None:
            yield None
            continue
        if message.error() is not None:
            raise KafkaException(message.error())
        yield msgspec.json.decode(message.value() or b"", type=_ANSWERS[message.topic() or ""])


def _progress(lines: Path) -> dict[str, Any]:
    """What the run's log says, as fields of the progress bar."""
    try:
        last = lines.read_bytes().splitlines()[-1]
        step = msgspec.json.decode(last, type=dict[str, Any])
    except (FileNotFoundError, IndexError, msgspec.DecodeError):
        return {}  # not begun, or its last line is only half written
    accuracy, loss = step["val_accuracy"], step["batch_loss"]
    state = f"epoch {step['epoch']}, step {step['step']}"
    state += f", batch_loss {loss:.4f}" if loss is not None else ""
    state += f", val_accuracy {accuracy:.4f}" if accuracy is not None else ""
    return {"completed": step["epoch"], "state": state}


def _print(order: Retrain, loaded: Loaded, answer: Answer | None, found: Settings, as_json: bool) -> None:
    """Say what came of it.

    Raises:
        NotIntroduced: the version was refused.
    """
    lines, table = run_files(found.artifacts_dir, order)
    candidate = answer.candidate if answer else None
    result = {
        "model": order.model,
        "version": order.new_version,
        "artifact": candidate.artifact if candidate else "",
        "retrain_id": order.event_id,
        "snapshot": order.evidence["snapshot"],
        "seed": order.seed,
        "rows": len(loaded.rows),
        "left_out": loaded.read - len(loaded.rows),
        "findings": [msgspec.to_builtins(finding) for finding in loaded.findings],
        "action": answer.rollout.action if answer else "",
        "reason": answer.rollout.reason if answer else "",
        "stage": answer.rollout.stage if answer else "",
        "report": candidate.report if candidate else {},
        "run": [str(lines), str(table)],
    }
    if as_json:
        click.echo(json.dumps(result))
    if answer is None:
        if not as_json:
            click.echo(f"{order.model} {order.new_version}: ordered; follow it in {lines}")
    elif answer.rollout.action == "refuse":
        raise NotIntroduced(f"{order.model} {order.new_version}: refused: {answer.rollout.reason}")
    elif not as_json:
        click.echo(_summary(answer))
        click.echo(f"log: {lines}")


def _summary(answer: Answer) -> str:
    candidate, rollout = answer
    unseen = candidate.report.get("candidate", {})
    measured = ", ".join(f"{name} {value:.4f}" for name, value in unseen.items() if name != "rows")
    return (
        f"{candidate.model} {candidate.version} from {candidate.rows} rows in {candidate.train_ms / 1e3:.1f} s; "
        f"on {unseen.get('rows', 0)} unseen rows: {measured}; {rollout.action}: {rollout.reason}"
    )
