"""`tidemill backup | verify | restore`: a chain of full and incremental backups, proven whole, and a new data folder from any of them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from cli.context import settings as find_settings
from cli.options import data_option, json_option
from compose.backup.chain import Chain
from compose.backup.create import Say, back_up
from compose.backup.restore import restore as run_restore
from runtime.settings import PREFIX
from schemas.errors import UserError

_folder = click.Path(path_type=Path, file_okay=False)
from_option = click.option(
    "--from", "folder", type=_folder, required=True, metavar="DIR", help="The chain of backups."
)
at_option = click.option(
    "--at", default="", metavar="BACKUP", help="A backup's name, or its beginning; by default the newest."
)


@click.command()
@click.option(
    "--to",
    "folder",
    type=_folder,
    required=True,
    metavar="DIR",
    help="The chain of backups; made if it is not there.",
)
@click.option("--full", is_flag=True, help="A full backup, though an incremental one would do.")
@click.option(
    "--wait", "wait_sec", type=click.FloatRange(min=0), default=30.0, show_default=True, metavar="SEC",
    help="How long to wait until what was produced before is in ClickHouse.",
)  # fmt: skip
@data_option
@json_option
def backup(folder: Path, full: bool, wait_sec: float, data_dir: Path, as_json: bool) -> None:
    """Back up warehouse, artifacts and control topics while the stack runs.

    Incremental on the newest backup of DIR; full if there is none, or if the newest full one is older than 31 days.
    """
    embedded = None if PREFIX + "KAFKA_BOOTSTRAP" in os.environ else data_dir
    made = back_up(
        find_settings(data_dir), folder, data_dir=embedded, full=full, wait_sec=wait_sec, say=_say(as_json)
    )
    manifest = made.manifest
    rows = sum(part.rows for table in manifest.tables.values() for part in table.partitions.values())
    records = sum(segment.records for topic in manifest.topics.values() for segment in topic.segments)
    if as_json:
        _print(
            name=made.name, kind=manifest.kind, base=manifest.base, complete=manifest.complete, late=made.late, rows=rows,
            records=records, artifact_files=len(manifest.artifacts), new_bytes=manifest.new_bytes, took_sec=made.took_sec,
        )  # fmt: skip
        return
    for line in made.late:
        click.echo(f"not in the backup: {line}", err=True)
    click.echo(
        f"{made.name}: {rows:,} rows, {records:,} records, {len(manifest.artifacts):,} artifact files; "
        f"{manifest.new_bytes:,} bytes written ({made.took_sec:.1f} s)"
    )


@click.command()
@from_option
@at_option
@json_option
def verify(folder: Path, at: str, as_json: bool) -> None:
    """Hash every byte of the chain, or of one backup and what it builds on. Exit code 1 and the files' names if one is missing or altered."""
    started = time.monotonic()
    chain = Chain(folder)
    chosen = chain.choose(at)
    names = [chosen] if at else chain.names()
    faults, read_bytes = chain.check(names)
    took_sec = round(time.monotonic() - started, 3)
    if as_json:
        found = [fault._asdict() for fault in faults]
        _print(ok=not faults, backups=names, bytes=read_bytes, faults=found, took_sec=took_sec)
    else:
        for fault in faults:
            click.echo(f"{fault.path} {fault.problem}; needed by {', '.join(fault.backups)}")
        whole = sum(all(name not in fault.backups for fault in faults) for name in names)
        click.echo(f"{whole} of {len(names)} backups are whole; {read_bytes:,} bytes read ({took_sec:.1f} s)")
    if faults:
        click.get_current_context().exit(1)


@click.command()
@from_option
@at_option
@click.option(
    "--data", "data_dir", type=_folder, required=True, metavar="NEWDIR",
    help="The new data folder: empty, or not there yet.",
)  # fmt: skip
@json_option
def restore(folder: Path, at: str, data_dir: Path, as_json: bool) -> None:
    """Restore a backup into a new data folder, and prove that it is what was backed up. Then: `tidemill up --data NEWDIR`."""
    if PREFIX + "KAFKA_BOOTSTRAP" in os.environ:
        raise UserError(
            f"{PREFIX}KAFKA_BOOTSTRAP is set: a backup is restored into a new embedded stack, not into a deployment that runs"
        )
    restored = run_restore(folder, data_dir, at=at, say=_say(as_json))
    if as_json:
        _print(**msgspec.structs.asdict(restored))
        return
    click.echo(
        f"{restored.name}: {restored.rows:,} rows, {restored.records:,} records, {restored.artifacts:,} versions restored and compared "
        f"({restored.took_sec:.1f} s); start it with `tidemill up --data {data_dir}`"
    )


def _say(quiet: bool) -> Say:
    console = Console(stderr=True, quiet=quiet)
    began = time.monotonic()

    def say(step: str) -> None:
        console.print(
            f"{time.monotonic() - began:6.1f} s  {step}", highlight=False, soft_wrap=True, style="dim"
        )

    return say


def _print(**values: Any) -> None:
    click.echo(msgspec.json.encode(values))
