"""The account notices each thing that can go wrong with an answer, a row and a chain of labels."""

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Consumer

from benchmarks.faults import answers as answers_in_kafka
from benchmarks.faults import observed, outcomes, rows
from benchmarks.faults.account import Account
from benchmarks.faults.load import Ledger
from benchmarks.faults.sent import Sent, sent_to
from benchmarks.faults.truth import Linear, Truth, differs
from schemas.arrow import MS, encode_batch

SEED, SENT, PARTITION = 5, 2000, 1
NO_READER = cast(Consumer, None)
Answers = list[dict[str, Any]]
MEAN, STD = np.array([0.5, 0.4]), np.array([0.3, 0.2])
LIVE = Linear(MEAN, STD, np.array([[0.0, 0.0], [0.2, -0.1]]), np.array([0.0, 2.0]))
"""Always `yes`, more or less clearly."""
SHADOW = LIVE._replace(weight=np.array([[0.1, 0.0], [0.0, 0.3]]))


class Record:
    """A Kafka record, as far as it is read here."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def value(self) -> bytes:
        return self._value


@pytest.fixture(scope="module")
def sent() -> Sent:
    ledger = Ledger(SEED)
    ledger.generation(uuid.uuid4())
    ledger.sent = SENT
    keys = rows.keys(SEED, np.arange(SENT)) % rows.PARTITIONS
    for partition in range(rows.PARTITIONS):
        mine = np.flatnonzero(keys == partition)
        ledger.offsets[mine] = np.arange(len(mine))
        ledger.timestamps_ms[mine] = 1_700_000_000_000 + mine
    return sent_to(ledger, PARTITION)


@pytest.fixture
def answers(sent: Sent) -> Answers:
    """The right answers."""
    found: Answers = []
    for place, row in enumerate(sent.rows.tolist()):
        kind = int(rows.poison_kinds(SEED, np.array([row]))[0])
        one: dict[str, Any] = {"prediction_id": str(uuid.UUID(bytes=sent.ids[place : place + 1].tobytes()))}
        if kind == rows.GOOD:
            one |= {"request_id": str(row), "version": rows.LIVE_VERSION, "label": "yes"}
            scores = LIVE.scores(rows.millionths(SEED, np.array([row])) / 1e6)[0]
            one["scores"] = dict(zip(rows.CLASSES, scores.tolist(), strict=True))
        else:
            one |= {"rejected": {"reason": rows.POISON[kind].reason}}
        found.append(one)
    return found


def account_of(monkeypatch: pytest.MonkeyPatch, sent: Sent, answers: Answers) -> Account:
    def records(*_: object) -> Iterator[list[Record]]:
        for start in range(0, len(answers), 100):
            yield [Record(json.dumps(answer).encode()) for answer in answers[start : start + 100]]

    monkeypatch.setattr(answers_in_kafka, "partition_records", records)
    account = Account()
    answers_in_kafka.check(NO_READER, PARTITION, sent, Ledger(SEED), LIVE, account)
    return account


def test_the_right_answers_are_right(monkeypatch: pytest.MonkeyPatch, sent: Sent, answers: Answers) -> None:
    account = account_of(monkeypatch, sent, answers)
    assert account.broken == {}
    assert account.answered == sum("rejected" not in answer for answer in answers)


def swap(answers: Answers) -> None:
    answers[150], answers[151] = answers[151], answers[150]


def swap_across_batches(answers: Answers) -> None:
    answers[99], answers[100] = answers[100], answers[99]


def other_reason(answers: Answers) -> None:
    next(answer for answer in answers if "rejected" in answer)["rejected"]["reason"] = "inference_failed"


@pytest.mark.parametrize(
    ("spoil", "broken"),
    [
        (lambda answers: answers.pop(17), {"lost": 1}),
        (lambda answers: answers.insert(18, answers[17]), {"duplicated": 1}),
        (lambda answers: answers.append(answers[0]), {"duplicated": 1, "misordered": 1}),
        (lambda answers: answers.append({"prediction_id": str(uuid.uuid4())}), {"unrequested": 1}),
        (swap, {"misordered": 1}),
        (swap_across_batches, {"misordered": 1}),
        (other_reason, {"wrong": 1}),
        (lambda answers: answers[17].update(request_id="18"), {"wrong": 1}),
        (lambda answers: answers[17].update(label="no"), {"wrong": 1}),
        (lambda answers: answers[17].update(scores=answers[19]["scores"]), {"wrong": 1}),
        (lambda answers: answers[17].update(version=rows.SHADOW_VERSION), {"wrong": 1}),
    ],
)
def test_a_spoiled_answer_is_noticed(
    monkeypatch: pytest.MonkeyPatch, sent: Sent, answers: Answers, spoil: Callable[[Answers], None], broken: dict[str, int]
) -> None:  # fmt: skip
    assert "rejected" not in answers[17] | answers[19]
    spoil(answers)
    assert account_of(monkeypatch, sent, answers).broken == broken


def table(sent: Sent, **changes: Any) -> pa.Table:
    """The live rows of the partition's first 50 requests, all answered `yes`."""
    n = 50
    columns: dict[str, Any] = {
        "prediction_id": pa.array([sent.ids[i : i + 1].tobytes() for i in range(n)], pa.binary(16)),
        "offset": np.arange(n),
        "live": [True] * n,
        "answered": [True] * n,
        "label": ["yes"] * n,
        "version": [rows.LIVE_VERSION] * n,
        "arm": [rows.LIVE_ARM] * n,
    }
    return pa.table(columns | changes)


def values(sent: Sent, version: Linear, **changes: Any) -> pa.Table:
    """What the rows of the partition's first 50 requests hold, all answered."""
    at = sent.rows[:50]
    given = rows.millionths(SEED, at) / 1e6
    scores = version.scores(given).astype(np.float32)
    columns: dict[str, Any] = {
        "key": rows.keys(SEED, at), "given": [*given.astype(np.float32)], "width": [2] * 50,
        "no": scores[:, 0], "yes": scores[:, 1],
    }  # fmt: skip
    for name, changed in changes.items():
        columns[name] = [changed, *columns[name][1:]]
    found = table(sent, live=[version is LIVE] * 50)
    for name, column in columns.items():
        found = found.append_column(name, pa.array(column))
    return found


def test_rows_that_hold_what_was_sent_and_what_comes_of_it_are_right(sent: Sent) -> None:
    for version in (LIVE, SHADOW):
        account = Account()
        observed._compare_values(
            Ledger(SEED), sent.rows[:50], values(sent, version), Truth(LIVE, SHADOW), account
        )
        assert account.broken == {}


@pytest.mark.parametrize("changes", [{"key": 4096}, {"given": [0.77, 0.5]}, {"width": 3}, {"yes": 0.5}])
@pytest.mark.parametrize("version", [LIVE, SHADOW], ids=["live", "shadow"])
def test_a_row_that_holds_something_else_is_noticed(
    sent: Sent, version: Linear, changes: dict[str, Any]
) -> None:
    account = Account()
    observed._compare_values(
        Ledger(SEED), sent.rows[:50], values(sent, version, **changes), Truth(LIVE, SHADOW), account
    )
    assert account.broken == {"wrong": 1}


def test_a_class_is_wrong_unless_both_are_equally_likely() -> None:
    expected = np.array([[0.5, 0.5], [0.4, 0.6], [0.4, 0.6]])
    assert differs(expected, expected + np.array([1e-5, -1e-5]), np.array([1, 1, 0])).tolist() == [
        False,
        False,
        True,
    ]
    assert differs(expected, expected + np.array([2e-4, -2e-4]), np.array([0, 1, 1])).all()
    assert differs(expected, np.full((3, 2), np.nan), np.array([0, 1, 1])).all()


def copied(sent: Sent, **changes: Any) -> pa.Table:
    """The shadow's copies of them."""
    by_shadow = {"version": [rows.SHADOW_VERSION] * 50, "arm": [rows.SHADOW_ARM] * 50}
    return table(sent, live=[False] * 50, **by_shadow | changes)


def compared(sent: Sent, live: pa.Table, copies: pa.Table | None = None) -> Account:
    found = pa.concat_tables([live, copied(sent) if copies is None else copies])
    account = Account()
    said = np.ones(len(sent.rows), np.int8)
    observed._compare(sent, np.arange(50), found, said, account, outcomes.Expected(SENT))
    return account


def test_the_right_rows_are_right(sent: Sent) -> None:
    assert compared(sent, table(sent)).broken == {}


def test_a_missing_a_repeated_and_a_torn_row_are_noticed(sent: Sent) -> None:
    right = table(sent)
    assert compared(sent, right.slice(1)).broken == {"lost": 1}
    assert compared(sent, pa.concat_tables([right, right.slice(7, 2)])).broken == {"duplicated": 2}
    assert compared(sent, table(sent, label=["no"] + ["yes"] * 49)).broken == {"torn": 1}
    assert compared(sent, table(sent, version=[rows.SHADOW_VERSION] + [rows.LIVE_VERSION] * 49)).broken == {
        "torn": 1
    }
    assert compared(sent, table(sent, arm=[""] + [rows.LIVE_ARM] * 49)).broken == {"torn": 1}
    assert compared(sent, table(sent, answered=[False] + [True] * 49)).broken == {"torn": 1}
    assert compared(sent, table(sent, offset=np.r_[1, np.arange(1, 50)])).broken == {
        "unrequested": 1,
        "lost": 1,
    }


def test_a_missing_copy_and_one_of_another_arm_or_version_are_noticed(sent: Sent) -> None:
    live = table(sent)
    assert compared(sent, live, copied(sent).slice(2)).broken == {"shadow_missing": 2}
    for name, others in (("version", rows.SHADOW_VERSION), ("arm", rows.SHADOW_ARM)):
        strange = copied(sent, **{name: ["strange"] + [others] * 49})
        assert compared(sent, live, strange).broken == {"wrong": 1}


def test_a_repeated_copy_is_noticed(sent: Sent) -> None:
    copies = copied(sent)
    repeated = pa.concat_tables([copies, copies.slice(3, 1)])
    assert compared(sent, table(sent), repeated).broken == {"shadow_duplicated": 1}


@pytest.mark.parametrize(
    ("revisions", "at_ms", "newest", "mismatch"),
    [
        ([0, 1, 2], [7, 8, 9], 2, 0),
        ([0, 0, 1], [7, 8, 9], 1, 2),
        ([0, 2], [7, 8], 2, 1),
        ([1, 0], [7, 8], 1, 3),
        ([0, 1], [7, 8], 0, 1),
        ([0, 1], [8, 7], 1, 1),
        ([0, 1], [8, 8], 1, 1),
    ],
)
def test_a_broken_chain_of_revisions_is_noticed(
    monkeypatch: pytest.MonkeyPatch, revisions: list[int], at_ms: list[int], newest: int, mismatch: int
) -> None:
    batch = pa.record_batch(
        {
            "model": [rows.MODEL] * len(revisions),
            "feedback_id": ["3-0"] * len(revisions),
            "role": ["live"] * len(revisions),
            "revision": pa.array(revisions, pa.uint32()),
            "labeled_at": pa.array(at_ms, MS),
        }
    )

    def records(_reader: object, _topic: str, partition: int) -> Iterator[list[Record]]:
        yield [Record(encode_batch(batch))] if partition == 0 else []

    monkeypatch.setattr(outcomes, "partition_records", records)
    account = Account()
    place_of = np.full(10, -1)
    place_of[3] = 0
    outcomes._chains(NO_READER, place_of, np.array([[newest], [-1]]), account)
    assert account.outcomes_mismatch == mismatch
