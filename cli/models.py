"""`tidemill models`: what there is, whether a spec holds, and a person's word over the automaton."""

from __future__ import annotations

import getpass
import json
import time
import uuid
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table

from cli.context import settings as find_settings
from cli.options import data_option, json_option
from compose.embedded.running import DEFAULT_MODELS_DIR
from runtime.artifacts import ArtifactStore
from runtime.clock import now_ms
from runtime.compacted import CompactedTopic
from runtime.kafka import producer
from runtime.settings import Settings
from schemas.errors import UnknownModel, UserError
from schemas.events import Command, RouteTable
from schemas.spec import load_specs
from schemas.topics import COMMANDS, ROUTES

ANSWER_WITHIN_SEC: Final = 15.0


class NoAnswer(UserError):
    """The control room did not act on an order."""

    exit_code = 1


@click.group()
def models() -> None:
    """List, check, freeze, roll back and approve models."""


@models.command("list")
@data_option
@json_option
def list_models(data_dir: Path, as_json: bool) -> None:
    """Show each model with its champion, stage and versions."""
    found = find_settings(data_dir)
    routes = read_routes(found)
    store = ArtifactStore(found.artifacts_dir)
    rows = [
        {
            "model": name,
            "task": spec.task,
            "champion": route.champion if (route := routes.get(name)) else "",
            "stage": route.stage if route else "empty",
            "frozen": route.frozen if route else False,
            "arms": [msgspec.to_builtins(arm) for arm in route.arms] if route else [],
            "versions": store.artifacts(name),
        }
        for name, spec in load_specs(found.models_dir).items()
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    table = Table(
        "model", "task", "champion", "stage", "frozen", "shadows", "versions", box=None, pad_edge=False
    )
    for row in rows:
        table.add_row(*_cells(row))
    Console().print(table)


def _cells(row: dict[str, Any]) -> list[str]:
    shadows = ", ".join(f"{arm['name']} {arm['version']}" for arm in row["arms"] if arm["role"] == "shadow")
    frozen = "yes" if row["frozen"] else ""
    return [
        row["model"],
        row["task"],
        row["champion"] or "none",
        row["stage"],
        frozen,
        shadows,
        str(len(row["versions"])),
    ]


@models.command()
@click.argument("model")
@click.option(
    "--models-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TIDEMILL_MODELS_DIR",
    default=DEFAULT_MODELS_DIR,
    show_default="triton_models",
)
@json_option
def check(model: str, models_dir: Path, as_json: bool) -> None:
    """Check spec, module, encoding and a golden batch of MODEL, offline. Exit code 1 if a check fails."""
    from training.check import (
        check as run_checks,
    )  # imports torch: seconds that the other commands need not wait

    results = run_checks(models_dir, model)
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(result) for result in results]))
    else:
        for result in results:
            click.echo(f"{'ok  ' if result.ok else 'FAIL'} {result.name}: {result.detail}")
            if result.mend:
                click.echo(f"     {result.mend}")
    if not all(result.ok for result in results):
        click.get_current_context().exit(1)


def _order(action: str, summary: str, takes_version: bool = False) -> click.Command:
    """One command that hands a person's order to the control room and waits for the route table that follows."""

    @click.command(action, help=summary)
    @click.argument("model")
    @click.option(
        "--version",
        default="",
        help="The version to go to; by default the previous champion.",
        hidden=not takes_version,
    )
    @click.option("--reason", default="", help="Kept with the decision.")
    @data_option
    @json_option
    def order(model: str, version: str, reason: str, data_dir: Path, as_json: bool) -> None:
        route = send_command(find_settings(data_dir), model, action, version, reason)
        if as_json:
            click.echo(msgspec.json.encode(route).decode())
        else:
            arms = ", ".join(f"{arm.name} {arm.version}" for arm in route.arms)
            click.echo(
                f"{model}: revision {route.revision}, {route.stage}{', frozen' if route.frozen else ''}: {arms}"
            )

    return order


for _name, _summary in {
    "freeze": "Stop the automaton for MODEL: no orders, promotions or reverts by itself.",
    "unfreeze": "Let the automaton go on.",
    "rollback": "Return MODEL to the previous champion (or --version) at once, and freeze it.",
    "approve": "Promote the major that waits or is measured in shadow.",
    "reject": "Refuse the major that waits or is measured in shadow.",
}.items():
    models.add_command(_order(_name, _summary, takes_version=_name == "rollback"))


@models.command()
@click.argument("model")
@click.option("--reason", default="", help="Kept with the order.")
@data_option
def retrain(model: str, reason: str, data_dir: Path) -> None:
    """Order a new major of MODEL."""
    found = find_settings(data_dir)
    _known(found, model)
    _send(
        found,
        Command(
            event_id=str(uuid.uuid4()),
            model=model,
            at_ms=now_ms(),
            action="retrain",
            by=getpass.getuser(),
            reason=reason,
        ),
    )
    click.echo(f"{model}: ordered; watch it with `tidemill models list` and in the table rollouts")


def send_command(found: Settings, model: str, action: str, version: str = "", reason: str = "") -> RouteTable:
    """Send an order and return the route table that came of it.

    Raises:
        NoAnswer: nothing changed within the time; the line says why that may be.
    """
    _known(found, model)
    routes = CompactedTopic(found, ROUTES.name)
    before = _route(routes, model)
    command = msgspec.convert(
        {
            "event_id": str(uuid.uuid4()), "model": model, "at_ms": now_ms(), "action": action,
            "version": version, "by": getpass.getuser(), "reason": reason,
        },
        Command,
    )  # fmt: skip
    _send(found, command)
    deadline = time.monotonic() + ANSWER_WITHIN_SEC
    try:
        while time.monotonic() < deadline:
            routes.refresh(0.2)
            after = _route(routes, model)
            if after is not None and (before is None or after.revision > before.revision):
                return after
    finally:
        routes.close()
    stage = before.stage if before else "empty"
    raise NoAnswer(
        f"{model}: {action} changed nothing within {ANSWER_WITHIN_SEC:.0f} s (stage {stage}); is there anything to {action}?"
    )


def read_routes(found: Settings) -> dict[str, RouteTable]:
    """All route tables, by model."""
    topic = CompactedTopic(found, ROUTES.name)
    topic.close()
    return {key.decode(): msgspec.json.decode(value, type=RouteTable) for key, value in topic.values.items()}


def _route(topic: CompactedTopic, model: str) -> RouteTable | None:
    value = topic.values.get(model.encode())
    return None if value is None else msgspec.json.decode(value, type=RouteTable)


def _known(found: Settings, model: str) -> None:
    specs = load_specs(found.models_dir)
    if model not in specs:
        raise UnknownModel(f"no model {model!r}: expected one of {', '.join(specs)}")


def _send(found: Settings, command: Command) -> None:
    client = producer(found)
    client.produce(COMMANDS.name, msgspec.json.encode(command), key=command.model.encode())
    if client.flush(ANSWER_WITHIN_SEC):
        raise NoAnswer(
            f"Kafka at {found.kafka_bootstrap} did not take the order within {ANSWER_WITHIN_SEC:.0f} s"
        )
