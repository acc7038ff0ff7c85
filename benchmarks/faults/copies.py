"""What is written twice by design: shadows' rows in Kafka and ClickHouse, and the tables that materialized views fill."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer

from benchmarks.faults.account import Account
from benchmarks.faults.rows import MODEL
from benchmarks.faults.topic import partition_records
from schemas.topics import OBSERVATIONS


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
    """The targets of the materialized views hold each answered row; a copy of one says the same, and who looks up takes one."""
    found = client.query(
        """
        SELECT
            (SELECT count() FROM internal.observations WHERE model = {model:String} AND status = 'answered') AS answered,
            (SELECT uniqExact(prediction_id, attempt, arm) FROM internal.prediction_lookup WHERE model = {model:String}) AS looked_up,
            (SELECT countIf(status = 'answered' AND role = 'live' AND request_id != '') FROM internal.observations
             WHERE model = {model:String}) AS named,
            (SELECT uniqExact(prediction_id, attempt) FROM internal.request_lookup WHERE model = {model:String}) AS by_request
        """,
        parameters={"model": MODEL},
    ).result_rows[0]
    answered, looked_up, named, by_request = (int(value) for value in found)
    account.note("lookups_mismatch", abs(answered - looked_up), f"{looked_up} of {answered} predictions")
    account.note("lookups_mismatch", abs(named - by_request), f"{by_request} of {named} requests")
