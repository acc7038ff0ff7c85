"""Options that several commands share."""

from pathlib import Path

import click

from compose.embedded.running import DEFAULT_DATA_DIR

data_option = click.option(
    "--data", "data_dir", type=click.Path(path_type=Path, file_okay=False), default=DEFAULT_DATA_DIR,
    envvar="TIDEMILL_DATA", show_default=".tidemill/data", help="The stack's data folder.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
