"""`tidemill dead-letters`: look at what could not be served, send it again, or be done with it; let a halted model pass."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table

from cli.context import settings as find_settings
from cli.dead_letter_text import details, pretty, shown_bytes, shown_time, summary
from cli.models import send_command
from cli.options import Moment, data_option, json_option
from control.dead_letters import DeadLetter, Filter, find
from control.redrive import chosen, discard, redrive, refuse_what_cannot_be_redriven
from runtime.clock import now_ms
from schemas.dead_letters import MAX_ATTEMPT
from schemas.errors import UserError
from schemas.topics import DEAD_LETTERS

LIST_ROWS: Final = 50
_PLACE: Final = re.compile(rf"{re.escape(DEAD_LETTERS.name)}:(\d+):(\d+)")


class Place(click.ParamType):
    """`dead-letters:PARTITION:OFFSET`, as `list` prints it."""

    name = "id"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        found = _PLACE.fullmatch(str(value))
        if found is None:
            self.fail(
                f"found {value!r}, expected {DEAD_LETTERS.name}:PARTITION:OFFSET, as `list` prints it",
                param,
                ctx,
            )
        return int(found[1]), int(found[2])


def filters(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose dead letters."""
    for option in (
        click.option(
            "--until", "until_ms", type=Moment(), help="Died before this time, or longer ago than 2h."
        ),
        click.option(
            "--since", "since_ms", type=Moment(), help="Died since this time, or no longer ago than 2h."
        ),
        click.option(
            "--attempt",
            type=click.IntRange(0, MAX_ATTEMPT),
            default=None,
            help="Which attempt died: 0 for the original, n for its n-th redrive.",
        ),
        click.option("--field", default="", help="The offending field."),
        click.option("--reason", default="", help="Why it was rejected, such as out_of_range."),
        click.option("--stage", default="", help="Who gave it up: gateway, labels or training."),
        click.option("--model", default="", help="The model."),
        click.argument("places", nargs=-1, type=Place(), metavar="[ID]…"),
    ):
        command = option(command)
    return command


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at records that could not be served, and send them again or be done with them.

    An ID is dead-letters:PARTITION:OFFSET, as `list` prints it.
    """


@dead_letters.command("list")
@filters
@click.option(
    "--status", type=click.Choice(["open", "redriven", "discarded", "all"]), default="open", show_default=True,
    help="What was done about it.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(min=1), default=LIST_ROWS, show_default=True, help="Show the newest N."
)
@data_option
@json_option
def list_letters(
    places: tuple[tuple[int, int], ...], model: str, stage: str, reason: str, field: str, since_ms: int | None,
    until_ms: int | None, attempt: int | None, status: str, limit: int, data_dir: Path, as_json: bool,
) -> None:  # fmt: skip
    """Show what died, oldest first."""
    wanted = Filter(
        places=frozenset(places), model=model, stage=stage, reason=reason, field=field, since_ms=since_ms, until_ms=until_ms, attempt=attempt,
        status="" if status == "all" else status,
    )  # fmt: skip
    count = 0
    newest: list[DeadLetter] = []
    for letter in find(find_settings(data_dir), wanted):
        count += 1
        newest.append(letter)
        if len(newest) > 2 * limit:
            newest = sorted(newest, key=_age)[-limit:]
    shown = sorted(newest, key=_age)[-limit:]
    if as_json:
        click.echo(json.dumps({"count": count, "dead_letters": [summary(letter) for letter in shown]}))
        return
    table = Table(
        "id", "died", "stage", "model", "reason", "attempt", "status", "message", box=None, pad_edge=False
    )
    for letter in shown:
        table.add_row(
            letter.place, shown_time(letter.died_at_ms), letter.stage, letter.model, letter.reason, str(letter.origin.attempt),
            letter.status, letter.message,
        )  # fmt: skip
    console = Console() if click.get_text_stream("stdout").isatty() else Console(width=200)
    console.print(table)
    console.print(f"{count} in all" if len(shown) == count else f"the newest {len(shown)} of {count}")


@dead_letters.command()
@click.argument("place", type=Place(), metavar="ID")
@data_option
@json_option
def show(place: tuple[int, int], data_dir: Path, as_json: bool) -> None:
    """Show one dead letter: why, where the original lies, its headers and its bytes."""
    wanted = Filter(places=frozenset([place]))
    letter = next(find(find_settings(data_dir), wanted), None)
    if letter is None:
        raise UserError(f"{DEAD_LETTERS.name}:{place[0]}:{place[1]}: there is no dead letter (any more)")
    if as_json:
        click.echo(json.dumps(details(letter)))
        return
    found = summary(letter)
    for name, value in found.items():
        click.echo(f"{name + ':':16}{value}")
    click.echo(f"{'key:':16}{shown_bytes(letter.key)}")
    for name, header in letter.headers:
        click.echo(
            f"{'header:':16}{name}: {shown_bytes(header if isinstance(header, bytes | None) else header.encode())}"
        )
    click.echo(f"{'value:':16}{len(letter.value or b'')} bytes")
    click.echo(pretty(letter.value))


def _deciding(
    name: str,
    summary_text: str,
    done: str,
    run: Callable[..., int],
    check: Callable[[list[DeadLetter]], None],
) -> click.Command:
    """`redrive` and `discard`: choose, say how many, ask, decide."""

    @click.command(name, help=summary_text)
    @filters
    @click.option("--limit", type=click.IntRange(min=1), default=None, help="At most the oldest N.")
    @click.option(
        "--all", "everything", is_flag=True, help="All that are open: instead of an ID or a filter."
    )
    @click.option("--dry-run", is_flag=True, help="Only say how many.")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @click.option("--comment", default="", help="Kept with the decision.")
    @data_option
    @json_option
    def decide(
        places: tuple[tuple[int, int], ...], model: str, stage: str, reason: str, field: str, since_ms: int | None,
        until_ms: int | None, attempt: int | None, limit: int | None, everything: bool, dry_run: bool, yes: bool, comment: str,
        data_dir: Path, as_json: bool,
    ) -> None:  # fmt: skip
        wanted = Filter(
            places=frozenset(places), model=model, stage=stage, reason=reason, field=field, since_ms=since_ms,
            until_ms=until_ms, attempt=attempt, status="open",
        )  # fmt: skip
        if everything == (wanted != Filter(status="open")):
            raise click.UsageError("expected IDs or filters, or --all")
        if as_json and not (yes or dry_run):
            raise click.UsageError("--json: nobody can be asked, expected --yes or --dry-run beside it")
        found = find_settings(data_dir)
        letters = chosen(find(found, wanted), limit)
        check(letters)
        count = len(letters)
        if dry_run or not count:
            _say(
                as_json,
                f"{count} would be {done}" if count else f"nothing open to be {done}",
                {done: 0, "chosen": count},
            )
            return
        if not yes:
            click.confirm(f"{count} dead letter{'s' if count > 1 else ''} will be {done}. Go on?", abort=True)
        # What died since is no part of what was said and confirmed.
        these = Filter(
            places=frozenset((letter.partition, letter.offset) for letter in letters), status="open"
        )
        count = run(found, these, None, by=getpass.getuser(), comment=comment, now_ms=now_ms)
        _say(as_json, f"{count} {done}", {done: count, "chosen": count})

    return decide


dead_letters.add_command(
    _deciding(
        "redrive",
        "Send dead letters again, each under its own identity and one attempt more. An answer of the same prediction id follows. "
        "Interrupted, it can be run again: nothing is sent twice.",
        "redriven", redrive, refuse_what_cannot_be_redriven,
    )
)  # fmt: skip
dead_letters.add_command(
    _deciding(
        "discard",
        "Mark dead letters as done with; their bytes stay until Kafka's retention drops them.",
        "discarded", discard, lambda letters: None,
    )
)  # fmt: skip


@dead_letters.command("pass")
@click.argument("model")
@click.option("--reason", default="", help="Kept with the decision.")
@data_option
@json_option
def let_pass(model: str, reason: str, data_dir: Path, as_json: bool) -> None:
    """Let what was sent to MODEL up to now be dead-lettered without limit, so that halted partitions go on."""
    route = send_command(find_settings(data_dir), model, "pass", reason=reason)
    if as_json:
        click.echo(msgspec.json.encode(route).decode())
    else:
        click.echo(
            f"{model}: what was sent before {shown_time(route.rejections_pass_until_ms)} is rejected without limit"
        )


def _age(letter: DeadLetter) -> tuple[int, int, int]:
    return letter.died_at_ms, letter.partition, letter.offset


def _say(as_json: bool, text: str, numbers: dict[str, int]) -> None:
    click.echo(json.dumps(numbers) if as_json else text)
