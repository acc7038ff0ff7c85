"""A range that is tried again goes in as two blocks with a token each, which ClickHouse has never seen. Two guards are gone: nobody counts either."""

from __future__ import annotations

from typing import Any

from clickhouse_connect.driver.client import Client

from benchmarks.faults.bugs import replace
from streams.sink import pools
from streams.sink.inserts import insert
from streams.sink.ranges import Range


def apply() -> None:
    """Try again in two halves."""

    def in_halves(client: Client, table: Any, range_: Range) -> bool:
        middle = len(range_.records) // 2
        for part in (range_.records[:middle], range_.records[middle:]):
            if any(record.rows for record in part):
                piece = range_._replace(first=part[0].offset, end=part[-1].offset + 1, records=part)
                insert(client, table, piece)
        return True

    replace(pools, "insert_if_missing", in_halves)
