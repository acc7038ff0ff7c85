"""The audit's arithmetic: each way in which the bijection can break is seen, counted and shown."""

from __future__ import annotations

import uuid

import numpy as np
from numpy.typing import NDArray

from control.bijection import (
    Observations,
    Predictions,
    Requests,
    expired,
    fault,
    ids_of,
    ids_of_texts,
    locate,
    misordered,
    shadow_duplicates,
    shadow_missing,
    surplus,
    times,
    with_attempts,
)  # fmt: skip
from schemas.identity import prediction_id, prediction_ids

TOPIC = uuid.UUID(int=5)


def requests(partitions: int = 2, each: int = 4) -> Requests:
    offsets: NDArray[np.int64] = np.arange(each, dtype=np.int64)
    ids = [
        ids_of(prediction_ids(offsets + 1000, [(TOPIC, p, each)], offsets, np.zeros_like(offsets)))
        for p in range(partitions)
    ]
    where = np.repeat(np.arange(partitions, dtype=np.int64), each)
    return Requests(np.concatenate(ids), where, np.tile(offsets, partitions))


def predictions(asked: Requests, rows: list[int]) -> Predictions:
    return Predictions(
        asked.ids[rows],
        asked.partitions[rows],
        np.ones(len(rows), dtype=bool),
        np.zeros(len(rows), dtype=np.int64),
    )


def observations(asked: Requests, rows: list[int], live: list[bool], arms: list[int]) -> Observations:
    n = len(rows)
    return Observations(
        asked.ids[rows],
        np.array(live),
        np.ones(n, dtype=bool),
        np.array(arms, dtype=np.int64),
        np.full(n, 3, dtype=np.int64),
        np.zeros(n, dtype=np.int64),
    )


def test_ids_are_the_same_from_arrays_from_texts_and_from_the_scalar_function() -> None:
    expected = [prediction_id(1000 + offset, TOPIC, 1, offset) for offset in range(4)]
    asked = requests()
    assert ids_of_texts(str(one) for one in expected).tobytes() == asked.ids[4:].tobytes()
    assert asked.ids[4:].tobytes() == b"".join(one.bytes for one in expected)


def test_an_id_that_ends_in_zero_bytes_is_found() -> None:
    odd = uuid.UUID(int=7 << 64)
    asked = Requests(ids_of_texts([str(odd)]), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
    assert locate(asked, ids_of_texts([str(odd), str(uuid.UUID(int=8 << 64))])).tolist() == [0, -1]


def test_what_is_missing_doubled_or_unasked_is_counted_and_shown() -> None:
    asked = requests()
    said = predictions(asked, [0, 1, 1, 1, 2, 4, 5, 6, 7])
    found = locate(asked, said.ids)
    counts = times(found, len(asked.ids))
    assert fault(counts == 0, asked.ids).rows == 1
    assert fault(counts == 0, asked.ids).examples == [prediction_id(1003, TOPIC, 0, 3).hex]
    assert surplus(counts, asked.ids).rows == 2
    stranger = ids_of_texts([str(uuid.uuid4()), "no uuid"])
    assert locate(asked, stranger).tolist() == [-1, -1]


def test_nothing_asked_means_everything_is_unasked() -> None:
    nothing = Requests(ids_of(b""), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    assert locate(nothing, requests().ids).tolist() == [-1] * 8


def test_answers_out_of_order_or_in_another_partition_are_seen() -> None:
    asked = requests()
    said = predictions(asked, [0, 2, 1, 3, 4, 5, 6, 7])
    assert misordered(asked, said, locate(asked, said.ids)).rows == 1
    moved = said._replace(partitions=np.zeros(8, dtype=np.int64))
    assert misordered(asked, moved, locate(asked, moved.ids)).rows == 5
    ordered = predictions(asked, list(range(8)))
    assert misordered(asked, ordered, locate(asked, ordered.ids)).rows == 0


def test_answers_to_requests_that_kafka_dropped_are_told_from_answers_to_nothing() -> None:
    asked = requests(partitions=1)
    strange = ids_of_texts(str(uuid.uuid4()) for _ in range(3))
    ids = np.concatenate([strange[:2], asked.ids, strange[2:]])
    said = Predictions(ids, np.zeros(7, dtype=np.int64), np.ones(7, dtype=bool), np.zeros(7, dtype=np.int64))
    found = locate(asked, ids)
    assert expired(said, found, [0]).tolist() == [True, True, False, False, False, False, False]
    assert not expired(said, found, []).any()


def test_a_shadow_row_counts_once_per_arm() -> None:
    asked = requests()
    seen = observations(asked, [0, 0, 0, 0, 1], [True, False, False, False, False], [0, 1, 2, 1, 1])
    assert shadow_duplicates(seen, locate(asked, seen.ids)).rows == 1


def test_copies_that_a_shadow_arm_owes_are_counted() -> None:
    asked = requests()
    seen = observations(asked, [0, 1, 2, 0, 1], [True, True, True, False, False], [0, 0, 0, 1, 1])
    found = locate(asked, seen.ids)
    assert shadow_missing(seen, found, {3: [1]}) == 1
    assert shadow_missing(seen, found, {3: [1, -1]}) == 4
    assert shadow_missing(seen, found, {4: [1]}) == 0


def test_an_attempt_is_told_from_the_first_answer_of_the_same_request() -> None:
    asked = requests(partitions=1)
    attempts = np.array([0, 1, 1, 2], dtype=np.int64)
    again = asked._replace(ids=with_attempts(asked.ids, attempts))
    said = with_attempts(asked.ids[[1, 1, 2, 3]], np.array([1, 2, 0, 2], dtype=np.int64))
    assert locate(again, said).tolist() == [1, -1, -1, 3]
    assert fault(np.array([False, True, False, False]), again.ids).examples == [
        uuid.UUID(bytes=asked.ids[1:2].tobytes()).hex
    ]
