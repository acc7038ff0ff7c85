"""What is written twice by design: shadows' rows in Kafka and ClickHouse, and the tables that materialized views fill."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer

from benchmarks.faults.account import Account
from benchmarks.faults.rows import MODEL
from benchmarks.faults.topic import partition_records
from schemas.topics import OBSERVATIONS

CONTENT: Final = {
    "prediction_lookup": (
        "prediction_id, attempt, request_id, entity, role, arm, version, label, scores, segments, requested_at, observed_at",
        "status = 'answered'",
    ),
    "request_lookup": (
        "prediction_id, attempt, request_id, requested_at",
        "status = 'answered' AND role = 'live' AND request_id != ''",
    ),
}
"""Target of a materialized view → the columns that it takes from `observations`, and of which rows."""
SHARE_ROWS: Final = 1_000_000
"""Requests whose rows are compared in one query, roughly."""


def check_shadows(reader: Consumer, account: Account) -> None:
    """The copies that were committed, against those that are in ClickHouse."""
    copies = 0
    for partition in range(OBSERVATIONS.partitions):
        for messages in partition_records(reader, OBSERVATIONS.name, partition):
            for message in messages:
                with pa.ipc.open_stream(message.value() or b"") as stream:
                    batch = stream.read_next_batch()
                mine = pc.and_(pc.equal(batch["model"], MODEL), pc.equal(batch["role"], "shadow"))
                copies += pc.sum(mine).as_py() or 0
    inserted = account.shadow_rows + account.shadow_duplicated
    account.note("shadow_lost", abs(copies - inserted), f"{copies} in Kafka, {inserted} in ClickHouse")


def check_lookups(client: Client, account: Account) -> None:
    """The targets of the materialized views hold what each answered row says, and nothing else. A copy of one says the same, and who
    looks up takes one."""
    shares = 1 + account.events // SHARE_ROWS
    for table, (columns, where) in CONTENT.items():
        for share in range(shares):
            mine = f"WHERE model = {{model:String}} AND cityHash64(prediction_id) % {shares} = {share}"
            count, example = client.query(
                f"""
                SELECT count(), any(prediction_id)
                FROM (
                    SELECT prediction_id
                    FROM (
                        SELECT prediction_id, cityHash64({columns}) AS content, 0 AS side FROM internal.observations {mine} AND {where}
                        UNION ALL
                        SELECT prediction_id, cityHash64({columns}) AS content, 1 AS side FROM internal.{table} {mine}
                    )
                    GROUP BY prediction_id, content
                    HAVING min(side) = max(side)
                )
                """,
                parameters={"model": MODEL},
            ).result_rows[0]
            account.note("lookups_mismatch", int(count), f"{table}: prediction {example}")
