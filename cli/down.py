"""`tidemill down`: end the stack and keep its data."""

from pathlib import Path

import click

from cli.options import data_option
from compose.embedded.running import end


@click.command()
@data_option
def down(data_dir: Path) -> None:
    """End the stack and keep its data. Fine if none runs."""
    if end(data_dir):
        click.echo(f"Ended; the data is kept in {data_dir}")
    else:
        click.echo(f"No stack runs on {data_dir}")
