"""Rows in ClickHouse: one live row a request, which says what was sent and what its answer says, and one copy of each answered one."""

from __future__ import annotations

import uuid
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client
from numpy.typing import NDArray

from benchmarks.faults import outcomes, rows
from benchmarks.faults.account import Account
from benchmarks.faults.answers import REJECTED
from benchmarks.faults.load import Ledger
from benchmarks.faults.rows import LIVE_ARM, LIVE_VERSION, MODEL, SHADOW_ARM, SHADOW_VERSION
from benchmarks.faults.sent import CHUNK_NUMBERS, CHUNK_ROWS, Sent, first_id, row_at
from benchmarks.faults.topic import id_bytes
from benchmarks.faults.truth import Truth, differs
from control.bijection import ids_of

ROUNDING: Final = 1e-6
"""Features are kept as float32."""


def check(
    client: Client, partition: int, sent: Sent, answers: NDArray[np.int8], ledger: Ledger, truth: Truth,
    account: Account, expected: outcomes.Expected,
) -> int:  # fmt: skip
    """Checks one partition's observations; returns the number of its shadow rows."""
    shadows = 0
    for generation, topic_id in enumerate(ledger.topic_ids):
        of_generation = np.flatnonzero(sent.generations == generation)
        chunk_rows = min(CHUNK_ROWS, CHUNK_NUMBERS // ledger.width)
        for start in range(0, len(of_generation), chunk_rows):
            chunk = of_generation[start : start + chunk_rows]
            table = _observations(client, topic_id, partition, start, start + len(chunk), ledger.width)
            shadows += _compare(sent, chunk, table, answers, account, expected)
            if table.num_rows:
                at = sent.rows[chunk[table["offset"].to_numpy().astype(np.int64) - start]]
                _compare_values(ledger, at, table, truth, account)
        surplus = client.query(
            "SELECT count() FROM internal.observations WHERE model = {model:String} AND topic_id = {topic:UUID}"
            " AND partition = {partition:Int32} AND offset >= {end:Int64}",
            parameters={
                "model": MODEL,
                "topic": str(topic_id),
                "partition": partition,
                "end": len(of_generation),
            },
        ).result_rows[0][0]
        account.note("unrequested", int(surplus), f"rows beyond partition {partition}")
    return shadows


def _observations(
    client: Client, topic_id: uuid.UUID, partition: int, first: int, end: int, width: int
) -> pa.Table:
    return client.query_arrow(
        """
        SELECT prediction_id, offset, role = 'live' AS live, status = 'answered' AS answered,
               toString(label) AS label, toString(version) AS version, toString(arm) AS arm,
               if(startsWith(entity, 'k'), toInt64OrDefault(substring(entity, 2), toInt64(-1)), toInt64(-1)) AS key,
               arrayResize(numbers, {width:UInt32}) AS given, length(numbers) AS width, scores[1] AS no, scores[2] AS yes
        FROM internal.observations
        WHERE model = {model:String} AND topic_id = {topic:UUID} AND partition = {partition:Int32}
          AND offset >= {first:Int64} AND offset < {end:Int64}
        """,
        parameters={
            "model": MODEL, "topic": str(topic_id), "partition": partition, "first": first, "end": end,
            "width": width,
        },
        use_strings=True,
    )  # fmt: skip


def _compare(
    sent: Sent, chunk: NDArray[np.int64], table: pa.Table, answers: NDArray[np.int8], account: Account,
    expected: outcomes.Expected,
) -> int:  # fmt: skip
    """Compares the rows of consecutive offsets with their requests; returns the number of shadow rows."""
    n = len(chunk)
    if table.num_rows == 0:
        account.note("lost", n, f"no row of {row_at(sent, np.isin(np.arange(len(sent.rows)), chunk[:1]))}")
        account.note("shadow_missing", int((answers[chunk] >= 0).sum()), "nor any copy")
        return 0
    place = table["offset"].to_numpy().astype(np.int64) - int(sent.offsets[chunk[0]])
    ids = ids_of(b"".join(id_bytes(part) for part in table["prediction_id"].chunks))
    live = table["live"].to_numpy().astype(bool)
    answered = table["answered"].to_numpy().astype(bool)
    right_id = ids == sent.ids[chunk][place]
    account.note("unrequested", int((~right_id).sum()), f"row with id {first_id(ids, ~right_id)}")
    counts = np.bincount(place[live & right_id], minlength=n)
    missing = np.zeros(len(sent.rows), bool)
    missing[chunk[counts == 0]] = True
    account.note("lost", int((counts == 0).sum()), f"no row of {row_at(sent, missing)}")
    repeated = np.zeros(len(sent.rows), bool)
    repeated[chunk[counts > 1]] = True
    account.note("duplicated", int(np.maximum(counts - 1, 0).sum()), f"rows of {row_at(sent, repeated)}")
    labels = pc.fill_null(pc.index_in(table["label"], value_set=pa.array(rows.CLASSES)), -3).to_numpy()
    noted = np.where(answered, labels, REJECTED)
    answer = answers[chunk][place]
    torn = (
        live
        & right_id
        & (answer > -2)
        & ((noted != answer) | (answered & ~_by(table, LIVE_ARM, LIVE_VERSION)))
    )
    account.note("torn", int(torn.sum()), f"row with id {first_id(ids, torn)}")
    strange = ~live & ~_by(table, SHADOW_ARM, SHADOW_VERSION)
    account.note(
        "wrong",
        int(strange.sum()),
        f"a shadow's row of id {first_id(ids, strange)} by another arm or version",
    )
    shadow = np.bincount(place[~live & right_id], minlength=n)
    account.note("shadow_duplicated", int(np.maximum(shadow - 1, 0).sum()), f"id {first_id(ids, ~live)}")
    account.note(
        "wrong", int(((shadow > 0) & (answers[chunk] < 0)).sum()), "a shadow's answer to what was rejected"
    )
    owed = np.zeros(len(sent.rows), bool)
    owed[chunk[(shadow == 0) & (answers[chunk] >= 0)]] = True
    account.note("shadow_missing", int(owed.sum()), f"no copy of {row_at(sent, owed)}")
    # A label can be held only against a copy that has scores.
    scored = np.bincount(place[~live & right_id & answered], minlength=n) > 0
    account.shadow_given_up += int(((shadow > 0) & ~scored).sum())
    expected.shadows[sent.rows[chunk[scored]]] = True
    return int((shadow > 0).sum())


def _by(table: pa.Table, arm: str, version: str) -> NDArray[np.bool_]:
    """Rows of this arm and version."""
    found: NDArray[np.bool_] = (
        pc.and_(pc.equal(table["arm"], arm), pc.equal(table["version"], version)).to_numpy().astype(bool)
    )
    return found


def _compare_values(
    ledger: Ledger, at: NDArray[np.int64], table: pa.Table, truth: Truth, account: Account
) -> None:
    """What each row says, live and copies, against what was sent and must come of it; `at` holds the number of the row's request."""
    live, answered = table["live"].to_numpy().astype(bool), table["answered"].to_numpy().astype(bool)
    given = rows.millionths(ledger.seed, at, ledger.width) / 1e6
    wrong = table["key"].to_numpy() != rows.keys(ledger.seed, at)
    held = pc.list_flatten(table["given"]).to_numpy().reshape(given.shape)
    far = np.abs(held - given) > ROUNDING
    # Of what was rejected, nothing is kept but why.
    wrong |= (answered | ~live) & (far.any(axis=1) | (table["width"].to_numpy() != given.shape[1]))
    scores = np.stack([table["no"].to_numpy(), table["yes"].to_numpy()], axis=1).astype(np.float64)
    label = pc.fill_null(pc.index_in(table["label"], value_set=pa.array(rows.CLASSES)), -1).to_numpy()
    for mine, version in ((live & answered, truth.live), (~live & answered, truth.shadow)):
        wrong[mine] |= differs(version.scores(given[mine]), scores[mine], label[mine])
    examples = table.filter(pa.array(wrong)).slice(0, 1).drop_columns(["prediction_id", "given"]).to_pylist()
    account.note("wrong", int(wrong.sum()), f"what is held of rows {at[wrong][:5].tolist()}: {examples}")
