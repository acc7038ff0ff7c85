"""`tidemill sql`: ask ClickHouse, read-only."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from clickhouse_connect.driver.exceptions import ClickHouseError
from urllib3.exceptions import HTTPError

from cli.context import settings
from cli.options import data_option
from schemas.errors import UserError
from warehouse.client import connect, mapped

ANALYST = "default"
"""Reads without a password and may change nothing."""


class QueryFailed(UserError):
    """ClickHouse did not answer the query; the line is its own, first one."""

    exit_code = 1


@click.command()
@click.argument("query", required=False)
@click.option(
    "--format", "output_format", default="", metavar="NAME",
    help="One of ClickHouse's formats: PrettyCompact, JSONEachRow, CSVWithNames, Vertical … "
    "[default: PrettyCompact on a terminal, else TabSeparatedWithNames]",
)  # fmt: skip
@data_option
def sql(query: str | None, output_format: str, data_dir: Path) -> None:
    """Run QUERY (or what stands on standard input) and print its result. Try "SELECT * FROM predictions LIMIT 5"."""
    text = (query if query is not None else click.get_text_stream("stdin").read()).strip().rstrip(";")
    if not text:
        raise click.UsageError('expected a query, such as tidemill sql "SHOW TABLES"')
    default = "PrettyCompact" if sys.stdout.isatty() else "TabSeparatedWithNames"
    found = settings(data_dir)
    try:
        # The server holds the result back until it is whole, so that an error never hides behind the first rows.
        client = connect(
            found.clickhouse_url, ANALYST, default_format=output_format or default, wait_end_of_query=1
        )
        with client.raw_stream(text) as answer:
            for chunk in iter(lambda: answer.read(1 << 16), b""):
                sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    except ClickHouseError as error:
        raise QueryFailed(_brief(str(mapped(error)))) from error
    except HTTPError as error:
        raise QueryFailed(f"ClickHouse: the connection broke off: {error}") from error


def _brief(message: str) -> str:
    """ClickHouse's own sentence, without the client's words around it.

    >>> _brief("Received ClickHouse exception, code: 62, server response: Code: 62. DB::Exception: Syntax error (SYNTAX_ERROR) (version 26) (for …)")
    'ClickHouse: Code: 62. DB::Exception: Syntax error (SYNTAX_ERROR)'
    """
    _, found, sentence = message.partition("server response: ")
    return f"ClickHouse: {sentence.partition(' (version ')[0]}" if found else message
