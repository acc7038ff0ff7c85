"""The account: what the load knows of each event, against what Kafka's read-committed readers and ClickHouse's see of it.

Partition by partition and in arrays, so that memory stays bounded. Nothing that a stage says of itself is used.
"""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer
from numpy.typing import NDArray

from benchmarks.faults import outcomes, rows
from benchmarks.faults.load import Ledger
from benchmarks.faults.rows import GOOD, MODEL, PARTITIONS, POISON
from benchmarks.faults.topic import id_bytes, partition_records
from control.bijection import Ids, ids_of, ids_of_texts, times
from runtime.headers import pairs, text
from schemas import dead_letters as names
from schemas.identity import prediction_ids
from schemas.topics import DEAD_LETTERS, OBSERVATIONS, PREDICTIONS

CHUNK_ROWS: Final = 500_000
EXAMPLES: Final = 5
LIVE_VERSION, SHADOW_VERSION = "1.0", "2.0"
REJECTED: Final = -1


@dataclass
class Account:
    """Counts; everything but what is named a total must be 0."""

    events: int = 0
    """Total of request rows that the broker acknowledged."""
    answered: int = 0
    feedback: int = 0
    """Total of feedback records."""
    lost: int = 0
    """Requests without an answer or rejection, and without a live row in ClickHouse: each counts."""
    duplicated: int = 0
    """Answers and rows beyond the first."""
    unrequested: int = 0
    """Answers and rows to nothing that was sent."""
    torn: int = 0
    """Answer and row differ: in status, label or version."""
    misordered: int = 0
    wrong: int = 0
    """Answers that a request cannot have: good ones rejected, poison answered or rejected with another reason, ids mixed up."""
    shadow_rows: int = 0
    shadow_given_up: int = 0
    """Total of copies whose arm did not answer in time: they are there, marked so."""
    shadow_missing: int = 0
    """Answered requests without their copy."""
    shadow_duplicated: int = 0
    shadow_lost: int = 0
    """Copies in `observations` that are not in ClickHouse, or the other way round."""
    lookups_mismatch: int = 0
    """Rows missing or surplus in the tables that materialized views fill."""
    poison_injected: int = 0
    poison_dead_lettered: int = 0
    dead_letters_wrong: int = 0
    """Dead letters of what was no poison, repeated ones, altered bytes, and differences between topic and table."""
    orphans_waiting: int = 0
    """Total of orphans too young to be told from labels that are early."""
    orphans_revived: int = 0
    """Total of labels that waited so long that they were given up, and joined after all."""
    outcomes: int = 0
    outcomes_mismatch: int = 0
    metrics_mismatch: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, fault: str, count: int, example: str) -> None:
        """Count a fault, and remember a few cases of it."""
        if count:
            setattr(self, fault, getattr(self, fault) + count)
            found = self.examples.setdefault(fault, [])
            if len(found) < EXAMPLES:
                found.append(example)

    @property
    def broken(self) -> dict[str, int]:
        """The guarantees that do not hold."""
        found = {name: getattr(self, name) for name in MUST_BE_ZERO if getattr(self, name)}
        missing = self.poison_injected - self.poison_dead_lettered
        return found | ({"poison_not_dead_lettered": missing} if missing else {})


MUST_BE_ZERO: Final = (
    "lost", "duplicated", "unrequested", "torn", "misordered", "wrong", "shadow_missing", "shadow_duplicated", "shadow_lost", "lookups_mismatch",
    "dead_letters_wrong", "outcomes_mismatch", "metrics_mismatch",
)  # fmt: skip


class Sent(NamedTuple):
    """The requests of one partition, over all generations of the topic, in the order of sending."""

    rows: NDArray[np.int64]
    generations: NDArray[np.int64]
    offsets: NDArray[np.int64]
    ids: Ids


def verify(reader: Consumer, client: Client, ledger: Ledger, base_ms: int, orphans_before_ms: int) -> Account:
    """The account of everything in `ledger`. `reader` is a read-committed consumer with `enable.partition.eof`.

    Orphans that were sent before `orphans_before_ms` must have been given up by now.
    """
    account = Account(feedback=ledger.feedback_records)
    shadow_counts = 0
    expected = outcomes.Expected(ledger.sent)
    for partition in range(PARTITIONS):
        sent = sent_to(ledger, partition)
        account.events += len(sent.rows)
        answers = _answers(reader, partition, sent, ledger.seed, account)
        shadow_counts += _rows(client, partition, sent, answers, ledger, account, expected)
        expected.add(sent.rows, sent.ids)
    account.shadow_rows = shadow_counts
    account.note("shadow_missing", account.answered - shadow_counts, f"{shadow_counts} of {account.answered}")
    _shadows_in_kafka(reader, account)
    _lookups(client, account)
    _dead_letters(reader, client, ledger, orphans_before_ms, account)
    outcomes.check(reader, client, ledger.seed, base_ms, expected, account)
    return account


def sent_to(ledger: Ledger, partition: int) -> Sent:
    """What was sent to `partition` and acknowledged."""
    every = np.arange(ledger.sent)
    mine = np.concatenate(
        [part[rows.keys(ledger.seed, part) % PARTITIONS == partition] for part in _parts(every)] or [every]
    )
    offsets = ledger.offsets[mine]
    if (offsets < 0).any():
        raise AssertionError("a row was not acknowledged")
    generations = np.searchsorted(ledger.first_rows, mine, side="right") - 1
    order = np.lexsort((offsets, generations))
    mine, offsets, generations = mine[order], offsets[order], generations[order]
    found = []
    for generation, topic_id in enumerate(ledger.topic_ids):
        which = generations == generation
        at = offsets[which]
        # A topic without transactions has no gaps: more or fewer records than were acknowledged would show here.
        if not np.array_equal(at, np.arange(len(at))):
            raise AssertionError(
                f"the request topic does not hold what was acknowledged: partition {partition}"
            )
        made = prediction_ids(ledger.timestamps_ms[mine[which]], topic_id, partition, at, np.zeros_like(at))
        found.append(ids_of(made))
    return Sent(mine, generations, offsets, np.concatenate(found) if found else np.zeros(0, "S16"))


def _parts(every: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [every[start : start + CHUNK_ROWS] for start in range(0, len(every), CHUNK_ROWS)]


# ── answers ──


class _Rejected(msgspec.Struct, gc=False):
    reason: str = ""


class _Answer(msgspec.Struct, gc=False):
    prediction_id: str = ""
    request_id: str = ""
    version: str = ""
    label: str = ""
    rejected: _Rejected | None = None


def _answers(reader: Consumer, partition: int, sent: Sent, seed: int, account: Account) -> NDArray[np.int8]:
    """Checks one partition of the predictions; the label's index of each request, `REJECTED`, or -2 where there is no answer."""
    decoder = msgspec.json.Decoder(_Answer)
    n = len(sent.rows)
    kinds = rows.poison_kinds(seed, sent.rows)
    reasons = np.array([poison.reason for poison in POISON] + [""])[kinds]
    counts = np.zeros(n, np.int64)
    said = np.full(n, -2, np.int8)
    order = np.argsort(sent.ids, kind="stable")
    newest = -1
    for messages in partition_records(reader, PREDICTIONS.for_model(MODEL), partition):
        answers = [decoder.decode(message.value() or b"") for message in messages]
        ids = ids_of_texts(answer.prediction_id for answer in answers)
        found = locate_in(sent.ids, order, ids)
        known = found >= 0
        account.note("unrequested", int((~known).sum()), f"prediction {_first(ids, ~known)}")
        counts += times(found, n)
        places = found[known]
        if len(places):
            swapped = int((np.diff(places) < 0).sum()) + int(places[0] < newest)
            account.note("misordered", swapped, f"row {sent.rows[places[0]]}")
            newest = int(places.max())
        for answer, place in zip(answers, found.tolist(), strict=True):
            if place < 0:
                continue
            row, reason = int(sent.rows[place]), str(reasons[place])
            if answer.rejected is not None:
                said[place] = REJECTED
                right = answer.rejected.reason == reason
            else:
                said[place] = rows.CLASSES.index(answer.label) if answer.label in rows.CLASSES else -3
                right = not reason and answer.request_id == str(row) and answer.version == LIVE_VERSION
            if not right:
                account.note("wrong", 1, f"row {row} ({reason or 'good'}): {answer}"[:300])
    account.note("lost", int((counts == 0).sum()), f"no answer to row {_row(sent, counts == 0)}")
    account.note(
        "duplicated", int(np.maximum(counts - 1, 0).sum()), f"answers to row {_row(sent, counts > 1)}"
    )
    account.answered += int((said >= 0).sum())
    return said


def locate_in(ids: Ids, order: NDArray[np.int64], wanted: Ids) -> NDArray[np.int64]:
    """`control.bijection.locate` with the order made once."""
    if not len(ids) or not len(wanted):
        return np.full(len(wanted), -1, np.int64)
    place = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    found: NDArray[np.int64] = np.where(ids[order[place]] == wanted, order[place], -1)
    return found


def _first(ids: Ids, mask: NDArray[np.bool_]) -> str:
    where = np.flatnonzero(mask)
    return ids[where[0] : where[0] + 1].tobytes().hex() if len(where) else ""


def _row(sent: Sent, mask: NDArray[np.bool_]) -> str:
    where = np.flatnonzero(mask)
    if not len(where):
        return ""
    place = int(where[0])
    return f"{sent.rows[place]} (offset {sent.offsets[place]}, generation {sent.generations[place]})"


# ── rows in ClickHouse ──


def _rows(
    client: Client, partition: int, sent: Sent, answers: NDArray[np.int8], ledger: Ledger, account: Account,
    expected: outcomes.Expected,
) -> int:  # fmt: skip
    """Checks one partition's observations; returns the number of its shadow rows."""
    shadows = 0
    for generation, topic_id in enumerate(ledger.topic_ids):
        of_generation = np.flatnonzero(sent.generations == generation)
        for start in range(0, len(of_generation), CHUNK_ROWS):
            chunk = of_generation[start : start + CHUNK_ROWS]
            table = _observations(client, topic_id, partition, start, start + len(chunk))
            shadows += _compare(sent, chunk, table, answers, account, expected)
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


def _observations(client: Client, topic_id: uuid.UUID, partition: int, first: int, end: int) -> pa.Table:
    return client.query_arrow(
        """
        SELECT prediction_id, offset, role = 'live' AS live, status = 'answered' AS answered,
               toString(label) AS label, toString(version) AS version
        FROM internal.observations
        WHERE model = {model:String} AND topic_id = {topic:UUID} AND partition = {partition:Int32}
          AND offset >= {first:Int64} AND offset < {end:Int64}
        """,
        parameters={
            "model": MODEL, "topic": str(topic_id), "partition": partition, "first": first, "end": end,
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
        account.note("lost", n, f"no row of {_row(sent, np.isin(np.arange(len(sent.rows)), chunk[:1]))}")
        return 0
    place = table["offset"].to_numpy().astype(np.int64) - int(sent.offsets[chunk[0]])
    ids = ids_of(b"".join(id_bytes(part) for part in table["prediction_id"].chunks))
    live = table["live"].to_numpy().astype(bool)
    answered = table["answered"].to_numpy().astype(bool)
    right_id = ids == sent.ids[chunk][place]
    account.note("unrequested", int((~right_id).sum()), f"row with id {_first(ids, ~right_id)}")
    counts = np.bincount(place[live & right_id], minlength=n)
    missing = np.zeros(len(sent.rows), bool)
    missing[chunk[counts == 0]] = True
    account.note("lost", int((counts == 0).sum()), f"no row of {_row(sent, missing)}")
    repeated = np.zeros(len(sent.rows), bool)
    repeated[chunk[counts > 1]] = True
    account.note("duplicated", int(np.maximum(counts - 1, 0).sum()), f"rows of {_row(sent, repeated)}")
    labels = pc.fill_null(pc.index_in(table["label"], value_set=pa.array(rows.CLASSES)), -3).to_numpy()
    noted = np.where(answered, labels, REJECTED)
    versions = pc.equal(table["version"], LIVE_VERSION).to_numpy().astype(bool)
    answer = answers[chunk][place]
    torn = live & right_id & (answer > -2) & ((noted != answer) | (answered & ~versions))
    account.note("torn", int(torn.sum()), f"row with id {_first(ids, torn)}")
    shadow = np.bincount(place[~live & right_id], minlength=n)
    account.note("shadow_duplicated", int(np.maximum(shadow - 1, 0).sum()), f"id {_first(ids, ~live)}")
    account.note(
        "wrong", int(((shadow > 0) & (answers[chunk] < 0)).sum()), "a shadow's answer to what was rejected"
    )
    # A label can be held only against a copy that has scores.
    scored = np.bincount(place[~live & right_id & answered], minlength=n) > 0
    account.shadow_given_up += int(((shadow > 0) & ~scored).sum())
    expected.shadows[sent.rows[chunk[scored]]] = True
    return int((shadow > 0).sum())


def _shadows_in_kafka(reader: Consumer, account: Account) -> None:
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


def _lookups(client: Client, account: Account) -> None:
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


# ── dead letters ──


def _dead_letters(
    reader: Consumer, client: Client, ledger: Ledger, orphans_before_ms: int, account: Account
) -> None:
    """The poison that was sent, and nothing else, by original bytes; and labels given up as orphans."""
    every = np.arange(ledger.sent)
    poisoned = np.concatenate(
        [part[rows.poison_kinds(ledger.seed, part) != GOOD] for part in _parts(every)] or [every]
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
    total = 0
    for partition in range(DEAD_LETTERS.partitions):
        for messages in partition_records(reader, DEAD_LETTERS.name, partition):
            for message in messages:
                headers = pairs(message.headers())
                total += 1
                gateway = text(headers, names.STAGE) == "gateway"
                topic = text(headers, names.TOPIC_ID) if gateway else "feedback"
                place = topic, int(text(headers, names.PARTITION)), int(text(headers, names.OFFSET))
                reason, value = text(headers, names.REASON), message.value() or b""
                if place not in (wanted if gateway else odd):
                    if not gateway and reason == "orphan_feedback":
                        revived[place] += 1
                    else:
                        account.note("dead_letters_wrong", 1, f"{place}: {reason}: {value[:100]!r}")
                    continue
                seen[place] += 1
                expected = odd[place][:2] if not gateway else _poison(*wanted[place])
                same = (reason, value) == expected
                account.note("dead_letters_wrong", int(not same), f"{place}: {reason}, not {expected[0]}")
    young = {
        place for place, (reason, _, at_ms) in odd.items()
        if reason == "orphan_feedback" and at_ms >= orphans_before_ms and place not in seen
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
    found = client.query(
        "SELECT count(), uniqExact(partition, offset) FROM internal.dead_letters WHERE model = {model:String}",
        parameters={"model": MODEL},
    ).result_rows[0]
    difference = abs(int(found[0]) - total) + abs(int(found[0]) - int(found[1]))
    account.note(
        "dead_letters_wrong", difference, f"{total} in Kafka, {found[0]} in ClickHouse, {found[1]} different"
    )


def _poison(kind: int, row: int) -> tuple[str, bytes]:
    return POISON[kind].reason, rows.poisoned(kind, row)
