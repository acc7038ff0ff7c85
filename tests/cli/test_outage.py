"""A part that is away is one line, never a traceback."""

from __future__ import annotations

from click.testing import CliRunner

from cli.__main__ import main
from compose.embedded.ports import free_ports


def test_a_query_without_clickhouse_is_one_line() -> None:
    (port,) = free_ports(1)
    environment = {
        "TIDEMILL_KAFKA_BOOTSTRAP": f"127.0.0.1:{port}",
        "TIDEMILL_CLICKHOUSE_URL": f"http://127.0.0.1:{port}",
    }
    result = CliRunner().invoke(main, ["sql", "SELECT 1"], env=environment)
    assert result.exit_code == 1
    assert result.stderr.startswith("tidemill: ClickHouse: ")
    assert result.stderr.count("\n") == 1
