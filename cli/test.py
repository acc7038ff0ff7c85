"""`tidemill test`: what CI runs is what a developer runs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from compose.embedded.parts import ROOT

BIN = Path(sys.executable).parent
CHECKS: Sequence[tuple[str, Sequence[str]]] = (
    ("ruff check", (str(BIN / "ruff"), "check", ".")),
    ("ruff format", (str(BIN / "ruff"), "format", "--check", ".")),
    ("mypy", (str(BIN / "mypy"),)),
    ("import-linter", (str(BIN / "lint-imports"),)),
)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--fast",
    "which",
    flag_value="not stack and not nightly",
    help="Leave out the tests that start the embedded stack.",
)
@click.option("--nightly", "which", flag_value="", help="Run the tests that take too long for CI, too.")
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
def test(which: str | None, pytest_arguments: tuple[str, ...]) -> None:
    """Run linters, the type checker and the tests. What follows `--` goes to pytest."""
    pytest = [str(BIN / "pytest"), *(() if which is None else ("-m", which)), *pytest_arguments]
    failed = [name for name, command in CHECKS if not passes(name, command)]
    passed = passes("pytest", pytest, quiet_end=not failed)
    if failed:
        heading(f"failed: {', '.join(failed if passed else [*failed, 'pytest'])}")
    click.get_current_context().exit(0 if passed and not failed else 1)


def passes(name: str, command: Sequence[str], *, quiet_end: bool = False) -> bool:
    """Run one check from the project's root. With `quiet_end` its own last line is the last: CI reads pytest's."""
    heading(name)
    began = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if not quiet_end:
        heading(
            f"{name}: {'ok' if code == 0 else f'FAILED (exit code {code})'} in {time.monotonic() - began:.1f} s"
        )
    return code == 0


def heading(text: str) -> None:
    click.echo(f"── {text} ".ljust(80, "─"))
