"""`tidemill audit`: prove that nothing is missing and nothing is counted twice."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from cli.context import settings
from cli.options import data_option, json_option
from control.audit import FAULTS, AuditReport
from control.audit import audit as run_audit

ROWS = (
    ("requests", "request rows that Kafka retains"),
    ("answered", "answered"),
    ("rejected", "rejected with a reason"),
    ("in_flight", "not answered or not visible yet"),
    ("missing", "without an answer"),
    ("duplicated", "answered more than once"),
    ("unrequested", "answers to nothing asked"),
    ("misordered", "answers out of order"),
    ("observations_live", "live observations in ClickHouse"),
    ("observations_missing", "answers without an observation"),
    ("observations_duplicated", "observed more than once"),
    ("observations_unrequested", "observations of nothing asked"),
    ("torn", "answer and observation disagree"),
    ("observations_shadow", "shadow observations"),
    ("shadow_duplicated", "shadow observations beyond one per arm"),
    ("shadow_missing", "shadow copies left out (no fault)"),
    ("dead_letters", "dead letters"),
    ("dead_letters_duplicated", "dead letters written twice"),
    ("redriven", "redriven request rows"),
    ("redriven_answered", "redriven and answered"),
    ("redriven_rejected", "redriven and rejected again"),
    ("redrive_faults", "faults of redriven requests"),
)


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]…")
@click.option(
    "--wait", "wait_sec", type=click.FloatRange(min=0), default=10.0, show_default=True, metavar="SEC",
    help="How long to wait for gateway and sink to catch up with what was asked before.",
)  # fmt: skip
@data_option
@json_option
def audit(models: tuple[str, ...], wait_sec: float, data_dir: Path, as_json: bool) -> None:
    """Prove over what Kafka retains: each request has one answer and one observation. Exit code 1 if not."""
    report = run_audit(settings(data_dir), list(models) or None, wait_sec)
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        show(report, Console())
    if not report.ok:
        click.get_current_context().exit(1)


def show(report: AuditReport, console: Console) -> None:
    """The report as a table: a column a model, faults in red."""
    table = Table("", *(account.model for account in report.models), box=None, pad_edge=False)
    for name, meaning in ROWS:
        counts = [getattr(account, name) for account in report.models]
        cells = [f"[red]{count:,}[/red]" if count and name in FAULTS else f"{count:,}" for count in counts]
        table.add_row(meaning, *cells)
    console.print(table)
    for account in report.models:
        for name, ids in account.examples.items():
            console.print(f"{account.model}: {name}: {', '.join(ids)}", soft_wrap=True)
    verdict = (
        "[green]nothing missing, nothing counted twice[/green]" if report.ok else "[red]not proven[/red]"
    )
    console.print(f"{verdict} ({report.took_sec:.1f} s)")
