"""Answers in Kafka, as a read-committed reader sees them: one a request, in order, and the right one."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from confluent_kafka import Consumer
from numpy.typing import NDArray

from benchmarks.faults import rows
from benchmarks.faults.account import Account
from benchmarks.faults.load import Ledger
from benchmarks.faults.rows import LIVE_VERSION, MODEL, POISON
from benchmarks.faults.sent import Sent, first_id, locate_in, row_at
from benchmarks.faults.topic import partition_records
from benchmarks.faults.truth import Linear, differs
from control.bijection import ids_of_texts, times
from schemas.topics import PREDICTIONS

REJECTED: Final = -1


class _Rejected(msgspec.Struct, gc=False):
    reason: str = ""


class _Scores(msgspec.Struct, frozen=True, gc=False):
    no: float = np.nan
    yes: float = np.nan


class _Answer(msgspec.Struct, gc=False):
    prediction_id: str = ""
    request_id: str = ""
    version: str = ""
    label: str = ""
    scores: _Scores = _Scores()
    rejected: _Rejected | None = None


def check(
    reader: Consumer, partition: int, sent: Sent, ledger: Ledger, live: Linear, account: Account
) -> NDArray[np.int8]:
    """Checks one partition of the predictions; the label's index of each request, `REJECTED`, or -2 where there is no answer."""
    decoder = msgspec.json.Decoder(_Answer)
    n = len(sent.rows)
    kinds = rows.poison_kinds(ledger.seed, sent.rows)
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
        account.note("unrequested", int((~known).sum()), f"prediction {first_id(ids, ~known)}")
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
        _compare(ledger, sent, live, answers, found, account)
    account.note("lost", int((counts == 0).sum()), f"no answer to row {row_at(sent, counts == 0)}")
    account.note(
        "duplicated", int(np.maximum(counts - 1, 0).sum()), f"answers to row {row_at(sent, counts > 1)}"
    )
    account.answered += int((said >= 0).sum())
    return said


def _compare(
    ledger: Ledger,
    sent: Sent,
    live: Linear,
    answers: list[_Answer],
    places: NDArray[np.int64],
    account: Account,
) -> None:
    """Scores and labels against those that the features give."""
    chosen = [
        (place, answer)
        for place, answer in zip(places.tolist(), answers, strict=True)
        if place >= 0 and answer.rejected is None
    ]
    if not chosen:
        return
    at = sent.rows[[place for place, _ in chosen]]
    scores = np.array([(answer.scores.no, answer.scores.yes) for _, answer in chosen])
    label = np.array(
        [rows.CLASSES.index(answer.label) if answer.label in rows.CLASSES else -1 for _, answer in chosen]
    )
    expected = live.scores(rows.millionths(ledger.seed, at, ledger.width) / 1e6)
    wrong = differs(expected, scores, label)
    account.note(
        "wrong",
        int(wrong.sum()),
        f"rows {at[wrong][:5].tolist()}: {scores[wrong][:1].tolist()}, expected {expected[wrong][:1].tolist()}",
    )
