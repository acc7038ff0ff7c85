"""Labels and metrics: the truth of each labelled request and its chain of revisions, and the worker's counters against ClickHouse's rows."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer
from numpy.typing import NDArray

from benchmarks.faults import rows
from benchmarks.faults.account import Account
from benchmarks.faults.rows import MODEL, NO_CASE
from benchmarks.faults.settle import settled
from benchmarks.faults.topic import id_bytes, partition_records
from control.bijection import ids_of
from schemas.spec import Monitor
from schemas.topics import OUTCOMES

SHARES: Final = 16
"""Outcomes are fetched in so many parts."""


class Expected:
    """By row: the prediction's id, and whether a shadow's answer is there that gets the label too."""

    def __init__(self, sent: int) -> None:
        self.ids: NDArray[np.bytes_] = np.zeros(sent, "S16")
        self.shadows: NDArray[np.bool_] = np.zeros(sent, bool)

    def add(self, which: NDArray[np.int64], ids: NDArray[np.bytes_]) -> None:
        """The ids of these rows."""
        self.ids[which] = ids


def wait_for_labels(client: Client, seed: int, sent: int, deadline_sec: float, still_sec: float) -> None:
    """Return when each labelled row has an outcome, or as `settled` gives up: labels that waited are joined a moment after their rows."""
    expected = len(labelled_rows(seed, sent))
    sql = "SELECT count() FROM internal.outcomes FINAL WHERE model = {model:String} AND role = 'live'"

    def joined() -> int:
        return int(client.query(sql, parameters={"model": MODEL}).result_rows[0][0])

    settled(joined, lambda count: count >= expected, deadline_sec, still_sec)


def labelled_rows(seed: int, sent: int) -> NDArray[np.int64]:
    """Rows that get feedback."""
    parts = [np.arange(start, min(start + 500_000, sent)) for start in range(0, sent, 500_000)]
    return np.concatenate(
        [part[rows.cases(seed, part) != NO_CASE] for part in parts] or [np.zeros(0, np.int64)]
    )


def check(
    reader: Consumer, client: Client, seed: int, base_ms: int, expected: Expected, account: Account
) -> None:
    """Exactly the outcomes that the feedback must give, one for each arm that answered; one chain of revisions each."""
    labelled = labelled_rows(seed, len(expected.ids))
    number = rows.final_numbers(rows.cases(seed, labelled))
    truth = rows.truths(seed, labelled, number)
    newest_at = np.array([max(one.at for one in said) for said in rows.CASES] + [0])
    at_ms = base_ms + labelled + newest_at[rows.cases(seed, labelled)]
    # A repeat has the same number, and makes no revision.
    different = np.array([len({one.number for one in said}) for said in rows.CASES] + [1])
    highest = different[rows.cases(seed, labelled)] - 1
    place_of = np.full(len(expected.ids), -1, np.int64)
    place_of[labelled] = np.arange(len(labelled))
    seen = np.zeros((2, len(labelled)), np.int64)
    revision = np.full((2, len(labelled)), -1, np.int64)
    for share in range(SHARES):
        table = _outcomes(client, share)
        if not table.num_rows:
            continue
        row = table["row"].to_numpy().astype(np.int64)
        known = (row >= 0) & (row < len(expected.ids))
        place = np.where(known, place_of[np.where(known, row, 0)], -1)
        known &= place >= 0
        account.note("outcomes_mismatch", int((~known).sum()), "outcomes of what got no label")
        repeats = known & (table["revision"].to_numpy() > highest[place])
        account.note(
            "outcomes_mismatch",
            int(repeats.sum()),
            f"revisions by repeats: row {_some(row, repeats)}",
        )
        ids = ids_of(b"".join(id_bytes(part) for part in table["prediction_id"].chunks))
        arm = 1 - table["live"].to_numpy().astype(np.int64)
        same = (
            (table["number"].to_numpy() == number[place])
            & (table["truth"].to_numpy() == truth[place])
            & (table["labeled_ms"].to_numpy() == at_ms[place])
            & (ids == expected.ids[np.where(known, row, 0)])
        )
        wrong = known & ~same
        account.note("outcomes_mismatch", int(wrong.sum()), f"another truth holds of row {_some(row, wrong)}")
        np.add.at(seen, (arm[known], place[known]), 1)
        revision[arm[known], place[known]] = table["revision"].to_numpy()[known]
    owed = np.stack([np.ones(len(labelled), np.int64), expected.shadows[labelled].astype(np.int64)])
    for arm_index, name in enumerate(("live", "shadow")):
        differs = seen[arm_index] != owed[arm_index]
        account.note(
            "outcomes_mismatch", int(differs.sum()), f"{name} outcomes of row {_some(labelled, differs)}"
        )
    account.outcomes = int(seen.sum())
    _chains(reader, place_of, revision, account)


def _some(row: NDArray[np.int64], mask: NDArray[np.bool_]) -> str:
    return str(row[mask][:5].tolist())


def _outcomes(client: Client, share: int) -> pa.Table:
    """Current outcomes; feedback ids are `<row>-<number>`."""
    return client.query_arrow(
        """
        SELECT prediction_id, toInt64OrDefault(splitByChar('-', feedback_id)[1], toInt64(-1)) AS row,
               toInt64OrDefault(splitByChar('-', feedback_id)[2], toInt64(-1)) AS number,
               toInt64(truth = 'yes') AS truth, role = 'live' AS live, toInt64(revision) AS revision,
               toUnixTimestamp64Milli(labeled_at) AS labeled_ms
        FROM internal.outcomes FINAL
        WHERE model = {model:String} AND cityHash64(prediction_id) % {shares:UInt32} = {share:UInt32}
        """,
        parameters={"model": MODEL, "shares": SHARES, "share": share},
    )


def _chains(
    reader: Consumer, place_of: NDArray[np.int64], newest: NDArray[np.int64], account: Account
) -> None:
    """Each prediction and arm has the revisions 0, 1, … once each and in this order, each of a later event time than the one before, the
    last being what ClickHouse holds. (Two labels may come in either order; a label may never replace one of a later time.)"""
    keys, revisions, times = [], [], []
    for partition in range(OUTCOMES.partitions):
        for messages in partition_records(reader, OUTCOMES.name, partition):
            for message in messages:
                with pa.ipc.open_stream(message.value() or b"") as stream:
                    batch = stream.read_next_batch()
                batch = batch.filter(pc.equal(batch["model"], MODEL))
                row = _numbers(batch["feedback_id"])
                arm = pc.equal(batch["role"], "shadow").cast(pa.int64()).to_numpy()
                known = (row >= 0) & (row < len(place_of))
                place = place_of[np.where(known, row, 0)]
                known &= place >= 0
                account.note(
                    "outcomes_mismatch", int((~known).sum()), "outcomes in Kafka of what got no label"
                )
                keys.append((place * 2 + arm)[known])
                revisions.append(batch["revision"].to_numpy().astype(np.int64)[known])
                times.append(batch["labeled_at"].cast(pa.int64()).to_numpy()[known])
    if not keys:
        return
    key, revision = np.concatenate(keys), np.concatenate(revisions)
    order = np.argsort(key, kind="stable")
    key, revision, at_ms = key[order], revision[order], np.concatenate(times)[order]
    begins = np.r_[True, key[1:] != key[:-1]]
    wanted = np.arange(len(key)) - np.maximum.accumulate(np.where(begins, np.arange(len(key)), 0))
    broken = revision != wanted
    account.note(
        "outcomes_mismatch", int(broken.sum()), f"chains of revisions: {revision[broken][:5].tolist()}"
    )
    older = ~begins[1:] & (at_ms[1:] <= at_ms[:-1])
    account.note(
        "outcomes_mismatch", int(older.sum()), f"revisions {revision[1:][older][:5].tolist()} by older labels"
    )
    last = np.r_[begins[1:], True]
    held = newest[key[last] % 2, key[last] // 2]
    differs = held != revision[last]
    account.note(
        "outcomes_mismatch", int(differs.sum()), f"ClickHouse holds revisions {held[differs][:5].tolist()}"
    )


def _numbers(feedback_ids: pa.Array) -> NDArray[np.int64]:
    """The rows that feedback ids name, -1 where they name none."""
    if not len(feedback_ids):
        return np.zeros(0, np.int64)
    named = pc.match_substring_regex(feedback_ids, "^[0-9]+-[0-9]$")
    digits = pc.replace_substring_regex(feedback_ids, "-.*", "")
    return np.asarray(pc.if_else(named, digits, "-1").cast(pa.int64()).to_numpy(zero_copy_only=False))


# ── metrics ──


class Cells(NamedTuple):
    """What the comparison of the worker's counters says."""

    cells: int
    differing: int
    example: str


METRICS_SQL: Final = """
WITH
    computed AS (
        SELECT window_start, role, arm, version, segment,
               sum(one) AS rows, sum(refused) AS rejected, sum(label) AS labelled, sum(hit) AS correct
        FROM (
            SELECT intDiv(toUnixTimestamp64Milli(requested_at), {window:Int64}) * {window:Int64} AS window_start,
                   toString(role) AS role, toString(arm) AS arm, toString(version) AS version,
                   arrayJoin(arrayConcat([''], arrayMap(s -> toString(s), segments))) AS segment,
                   1 AS one, toInt64(status = 'rejected') AS refused, 0 AS label, 0 AS hit
            FROM internal.observations WHERE model = {model:String}
            UNION ALL
            SELECT intDiv(toUnixTimestamp64Milli(requested_at), {window:Int64}) * {window:Int64},
                   toString(role), toString(arm), toString(version),
                   arrayJoin(arrayConcat([''], arrayMap(s -> toString(s), segments))),
                   0, 0, 1, toInt64(correct)
            FROM internal.outcomes FINAL WHERE model = {model:String}
        )
        GROUP BY ALL
    ),
    counted AS (
        SELECT window_start_ms AS window_start, toString(role) AS role, toString(arm) AS arm,
               toString(version) AS version, toString(segment) AS segment,
               toInt64(rows) AS rows, toInt64(rejected) AS rejected, toInt64(labelled) AS labelled, toInt64(correct) AS correct
        FROM internal.metrics FINAL WHERE model = {model:String}
    )
SELECT count() * 4,
       sum((a.rows != b.rows) + (a.rejected != b.rejected) + (a.labelled != b.labelled) + (a.correct != b.correct)) AS differing,
       anyIf((window_start, role, segment, a.rows, b.rows, a.rejected, b.rejected, a.labelled, b.labelled, a.correct, b.correct),
             a.rows != b.rows OR a.rejected != b.rejected OR a.labelled != b.labelled OR a.correct != b.correct)
FROM computed AS a FULL OUTER JOIN counted AS b USING (window_start, role, arm, version, segment)
"""
"""A window that only one side has counts as zeros on the other."""


def compare_metrics(client: Client) -> Cells:
    """The worker's counters, per window, arm, version and segment, against the rows that they were counted from."""
    window_ms = Monitor().window_sec * 1000
    found = client.query(METRICS_SQL, parameters={"model": MODEL, "window": window_ms}).result_rows[0]
    return Cells(int(found[0]), int(found[1] or 0), str(found[2]))


def wait_for_metrics(client: Client, deadline_sec: float, still_sec: float) -> Cells:
    """The comparison, as soon as nothing differs any more, or as `settled` gives up: windows are written a moment after their rows."""
    return settled(
        lambda: compare_metrics(client), lambda cells: not cells.differing, deadline_sec, still_sec
    )
