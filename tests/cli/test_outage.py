"""A part that is away is one line, never a traceback."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from cli.__main__ import main
from compose.embedded.ports import free_ports
from schemas.errors import Outage, TidemillError, UserError


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


class Lost(TidemillError):
    """Neither a mistake nor an outage."""


@pytest.mark.parametrize(
    ("error", "code"),
    [(Outage("Kafka:\n is away"), 1), (Lost("Kafka:\n is away"), 1), (UserError("Kafka: is away"), 2)],
)
def test_whatever_tidemill_raises_on_purpose_is_one_line(
    error: TidemillError, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_data_dir: object) -> None:
        raise error

    monkeypatch.setattr("cli.down.end", fail)
    result = CliRunner().invoke(main, ["down"])
    assert (result.exit_code, result.stderr) == (code, "tidemill: Kafka: is away\n")
