"""Dead letters: the poison that was sent, and nothing else, by original bytes and reason; and labels that were given up."""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer

from benchmarks.faults import rows
from benchmarks.faults.account import Account
from benchmarks.faults.load import Ledger
from benchmarks.faults.rows import GOOD, MODEL, PARTITIONS, POISON
from benchmarks.faults.sent import parts
from benchmarks.faults.settle import settled
from benchmarks.faults.topic import partition_records
from runtime.headers import Headers, pairs, text
from schemas import dead_letters as names
from schemas.topics import DEAD_LETTERS

ORPHAN: Final = "orphan_feedback"
SINK_SEC: Final = 10.0
"""What was read in Kafka a moment ago is in ClickHouse by then."""


def wait_for_orphans(
    client: Client,
    ledger: Ledger,
    orphan_after_sec: int,
    given_up_ms: int,
    deadline_sec: float,
    still_sec: float,
) -> None:
    """Return when all feedback on nothing that was sent before `given_up_ms` is dead-lettered, or as `settled` gives up: while ClickHouse
    was away, nobody could tell that there is nothing, and what was sent then is given up `orphan_after_sec` after it was read."""
    owed = {
        place for place, (reason, _, at_ms) in ledger.odd_feedback.items()
        if reason == ORPHAN and at_ms < given_up_ms
    }  # fmt: skip

    def missing() -> int:
        sql = "SELECT source_partition, source_offset FROM internal.dead_letters WHERE model = {model:String} AND reason = {reason:String}"
        found = client.query(sql, parameters={"model": MODEL, "reason": ORPHAN}).result_rows
        return len(owed.difference((int(partition), int(offset)) for partition, offset in found))

    settled(missing, lambda count: not count, orphan_after_sec + deadline_sec, orphan_after_sec + still_sec)


def check(
    reader: Consumer, client: Client, ledger: Ledger, orphan_after_sec: int, given_up_ms: int, account: Account
) -> None:  # fmt: skip
    """The poison that was sent, and nothing else, by original bytes; and labels given up as orphans."""
    every = np.arange(ledger.sent)
    poisoned = np.concatenate(
        [part[rows.poison_kinds(ledger.seed, part) != GOOD] for part in parts(every)] or [every]
    )
    kinds = rows.poison_kinds(ledger.seed, poisoned)
    generations = np.searchsorted(ledger.first_rows, poisoned, side="right") - 1
    partitions = rows.keys(ledger.seed, poisoned) % PARTITIONS
    wanted: dict[tuple[str, int, int], tuple[int, int]] = {}
    """Place of the original → kind of poison and row: the bytes are made again when they are compared."""
    for row, kind, generation, partition in zip(
        poisoned.tolist(), kinds.tolist(), generations.tolist(), partitions.tolist(), strict=True
    ):
        place = str(ledger.topic_ids[generation]), partition, int(ledger.offsets[row])
        wanted[place] = kind, row
    odd = {("feedback", *place): said for place, said in ledger.odd_feedback.items()}
    seen: Counter[tuple[str, int, int]] = Counter()
    revived: Counter[tuple[str, int, int]] = Counter()
    letters: set[tuple[int, int]] = set()
    for partition in range(DEAD_LETTERS.partitions):
        for messages in partition_records(reader, DEAD_LETTERS.name, partition):
            for message in messages:
                headers = pairs(message.headers())
                letters.add((partition, message.offset() or 0))
                early = is_early(headers, orphan_after_sec)
                account.note(
                    "dead_letters_wrong", int(early), f"given up before its time: {message.value()!r}"
                )
                gateway = text(headers, names.STAGE) == "gateway"
                topic = text(headers, names.TOPIC_ID) if gateway else "feedback"
                place = topic, int(text(headers, names.PARTITION)), int(text(headers, names.OFFSET))
                reason, value = text(headers, names.REASON), message.value() or b""
                if place not in (wanted if gateway else odd):
                    if not gateway and reason == ORPHAN:
                        revived[place] += 1
                    else:
                        account.note("dead_letters_wrong", 1, f"{place}: {reason}: {value[:100]!r}")
                    continue
                seen[place] += 1
                expected = odd[place][:2] if not gateway else _poison(*wanted[place], ledger.width)
                same = (reason, value) == expected
                account.note("dead_letters_wrong", int(not same), f"{place}: {reason}, not {expected[0]}")
    young = {
        place for place, (reason, _, at_ms) in odd.items()
        if reason == ORPHAN and at_ms >= given_up_ms and place not in seen
    }  # fmt: skip
    account.orphans_waiting = len(young)
    account.poison_injected = len(wanted) + len(odd) - len(young)
    account.poison_dead_lettered = len(seen)
    repeated = sum(count - 1 for count in (seen + revived).values())
    account.note("dead_letters_wrong", repeated, f"{(seen + revived).most_common(1)} more than once")
    account.orphans_revived = len(revived)
    for place in (*wanted, *odd):
        if place not in seen and place not in young:
            account.examples.setdefault("poison_not_dead_lettered", []).append(str(place))
            break
    _compare_tables(client, letters, account)


def _compare_tables(client: Client, letters: set[tuple[int, int]], account: Account) -> None:
    """ClickHouse has `letters` (partition, offset), each once, and no other of as low an offset: orphans go on being given up meanwhile."""
    ends: dict[int, int] = {}
    for partition, offset in letters:
        ends[partition] = max(offset, ends.get(partition, -1))

    def look() -> list[tuple[int, int]]:
        sql = "SELECT partition, offset FROM internal.dead_letters WHERE model = {model:String}"
        found = client.query(sql, parameters={"model": MODEL}).result_rows
        return [
            (int(partition), int(offset)) for partition, offset in found if offset <= ends.get(partition, -1)
        ]

    found = settled(look, letters.issubset, SINK_SEC, SINK_SEC)
    different = letters.symmetric_difference(found)
    account.note(
        "dead_letters_wrong", len(different), f"in Kafka or in ClickHouse only: {sorted(different)[:5]}"
    )
    account.note(
        "dead_letters_wrong", len(found) - len(set(found)), "the same dead letter in ClickHouse again"
    )


def is_early(headers: Headers, orphan_after_sec: int) -> bool:
    """Whether a dead letter is a label that was given up sooner than it may be."""
    died_ms, sent_ms = int(text(headers, names.DIED_AT_MS)), int(text(headers, names.TIMESTAMP_MS))
    return text(headers, names.REASON) == ORPHAN and died_ms - sent_ms < orphan_after_sec * 1000


def _poison(kind: int, row: int, width: int) -> tuple[str, bytes]:
    return POISON[kind].reason, rows.poisoned(kind, row, width)
