"""The account: what the load knows of each event, against what Kafka's read-committed readers and ClickHouse's see of it.

Partition by partition and in arrays, so that memory stays bounded. Nothing that a stage says of itself is used.
"""

from __future__ import annotations

from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer

from benchmarks.faults import answers, copies, letters, observed, outcomes
from benchmarks.faults.account import Account
from benchmarks.faults.load import Ledger
from benchmarks.faults.rows import PARTITIONS
from benchmarks.faults.sent import sent_to
from benchmarks.faults.truth import Truth


def verify(
    reader: Consumer, client: Client, ledger: Ledger, truth: Truth, base_ms: int, orphan_after_sec: int, given_up_ms: int
) -> Account:  # fmt: skip
    """The account of everything in `ledger`. `reader` is a read-committed consumer with `enable.partition.eof`.

    Feedback on nothing must be given up after `orphan_after_sec`, not sooner; what was sent before `given_up_ms`, by now.
    """
    account = Account(feedback=ledger.feedback_records)
    shadow_counts = 0
    expected = outcomes.Expected(ledger.sent)
    for partition in range(PARTITIONS):
        sent = sent_to(ledger, partition)
        account.events += len(sent.rows)
        said = answers.check(reader, partition, sent, ledger, truth.live, account)
        shadow_counts += observed.check(client, partition, sent, said, ledger, truth, account, expected)
        expected.add(sent.rows, sent.ids)
    account.shadow_rows = shadow_counts
    copies.check_shadows(reader, account)
    copies.check_lookups(client, account)
    letters.check(reader, client, ledger, orphan_after_sec, given_up_ms, account)
    outcomes.check(reader, client, ledger.seed, base_ms, expected, account)
    return account
