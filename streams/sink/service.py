"""The sink's process: `python -m streams sink`."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from runtime.service import Health, Stop, run
from runtime.settings import Settings
from schemas.errors import Outage
from schemas.spec import load_specs
from streams.sink.loop import GROUP, Sink
from warehouse.client import connect

CONNECT_RETRY_SEC = 0.5


def serve(settings: Settings, health: Health, stop: Stop) -> None:
    """Run the sink until told to stop."""
    specs = load_specs(settings.models_dir)
    client = _connected(settings, health, stop)
    if client is None:
        return
    sink = Sink(settings, health, client, specs)
    try:
        while not stop.is_set():
            sink.step()
    finally:
        sink.close()
        client.close()


def _connected(settings: Settings, health: Health, stop: Stop) -> Client | None:
    """A client, once ClickHouse answers; None if told to stop before."""
    while not stop.is_set():
        try:
            return connect(settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password)
        except Outage as error:
            health.error(str(error))
            stop.wait(CONNECT_RETRY_SEC)
    return None


def main() -> int:
    """Entry point; returns the exit code."""
    return run(GROUP, serve)
