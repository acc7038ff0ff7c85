"""`tidemill logs`: the logs of the stack's processes, running or not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from cli.options import data_option
from schemas.errors import UserError


@click.command()
@click.argument("process", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option("-n", "--lines", default=20, show_default=True, help="How many lines of each log.")
@data_option
def logs(process: str | None, follow: bool, lines: int, data_dir: Path) -> None:
    """Show the end of PROCESS's log, or of every process's."""
    files = log_files(data_dir, process)
    width = max(len(file.stem) for file in files)
    ends = {}
    for file in files:
        with file.open("rb") as log:
            text = log.read()
            ends[file] = log.tell()
        show(file.stem.ljust(width), text.decode(errors="replace").splitlines()[-lines:] if lines else [])
    try:
        while follow:
            time.sleep(0.25)
            for file in files:
                ends[file] = show_new(file, ends[file], width)
    except KeyboardInterrupt:
        return


def log_files(data_dir: Path, process: str | None) -> list[Path]:
    files = sorted((data_dir / "logs").glob("*.log"))
    if not files:
        raise UserError(f"there are no logs in {data_dir / 'logs'}; start a stack with `tidemill up`")
    chosen = [file for file in files if process in (None, file.stem)]
    if not chosen:
        raise UserError(
            f"no process is named {process!r}; there are {', '.join(file.stem for file in files)}"
        )
    return chosen


def show_new(file: Path, start: int, width: int) -> int:
    """Whole lines since offset `start`; returns where to go on. A log that has shrunk was rotated: from its beginning."""
    if file.stat().st_size < start:
        start = 0
    with file.open("rb") as log:
        log.seek(start)
        whole, newline, _ = log.read().rpartition(b"\n")
    show(file.stem.ljust(width), whole.decode(errors="replace").splitlines())
    return start + len(whole) + len(newline)


def show(name: str, lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(f"{click.style(name, dim=True)}  {line}")
