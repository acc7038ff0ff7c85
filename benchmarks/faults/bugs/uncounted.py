"""No bug by itself: the sink's second guard, taken away together with a first. It looks for no range in ClickHouse before it inserts it again."""

from __future__ import annotations

from typing import Any

from clickhouse_connect.driver.client import Client

from benchmarks.faults.bugs import replace
from streams.sink import pools
from streams.sink.inserts import insert


def apply() -> None:
    """Insert again without a question."""

    def insert_again(client: Client, table: Any, range_: Any) -> bool:
        insert(client, table, range_)
        return True

    replace(pools, "insert_if_missing", insert_again)
