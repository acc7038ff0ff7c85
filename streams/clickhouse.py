"""The ClickHouse client of a stage that cannot do without."""

from __future__ import annotations

from typing import Final

from clickhouse_connect.driver.client import Client

from runtime.service import Health, Stop
from runtime.settings import Settings
from schemas.errors import Outage
from warehouse.client import connect

RETRY_SEC: Final = 0.5


def connected(settings: Settings, health: Health, stop: Stop) -> Client | None:
    """A client, once ClickHouse answers; None if the service is stopped before."""
    while not stop.is_set():
        try:
            return connect(settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password)
        except Outage as error:
            health.error(str(error))
            stop.wait(RETRY_SEC)
    return None
