"""`tidemill doctor`: what is missing or misconfigured, and the mend."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cli.options import data_option, json_option
from compose.embedded import checks


@click.command()
@data_option
@json_option
def doctor(data_dir: Path, as_json: bool) -> None:
    """Check this machine, the installation and the stack. Exit code 1 if something is broken."""
    found = checks.all_checks(data_dir)
    if as_json:
        click.echo(
            json.dumps({"checks": [check._asdict() for check in found], "ok": not checks.failures(found)})
        )
        click.get_current_context().exit(int(bool(checks.failures(found))))
    click.get_current_context().exit(checks.report(found))
