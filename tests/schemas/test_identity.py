"""Prediction ids are a function of the record's place and time."""

from __future__ import annotations

import uuid

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.identity import prediction_id, prediction_ids

TOPIC = uuid.UUID("7f3c1c0a-6d5e-4a53-9c2b-0d3b8a6f1e11")
offsets = st.integers(0, 2**62)
stamps = st.integers(0, 2**48 - 1)


@given(stamps, offsets, st.integers(0, 10_000), st.integers(0, 100_000))
def test_an_id_is_a_version_7_uuid_that_holds_the_timestamp(
    stamp: int, offset: int, partition: int, row: int
) -> None:
    found = prediction_id(stamp, TOPIC, partition, offset, row)
    assert (found.version, found.variant, found.int >> 80) == (7, uuid.RFC_4122, stamp)
    assert found == prediction_id(stamp, TOPIC, partition, offset, row)


@given(offsets, st.integers(0, 100))
def test_another_topic_partition_offset_or_row_is_another_id(offset: int, row: int) -> None:
    ids = {
        prediction_id(1, TOPIC, 0, offset, row),
        prediction_id(1, uuid.UUID(int=TOPIC.int ^ 1), 0, offset, row),
        prediction_id(1, uuid.UUID(int=TOPIC.int ^ 1 << 100), 0, offset, row),
        prediction_id(1, TOPIC, 1, offset, row),
        prediction_id(1, TOPIC, 0, offset + 1, row),
        prediction_id(1, TOPIC, 0, offset, row + 1),
    }
    assert len(ids) == 6


def test_rows_of_several_partitions_have_the_ids_of_each() -> None:
    other = uuid.UUID(int=TOPIC.int ^ 1)
    runs = [(TOPIC, 0, 2), (other, 7, 0), (TOPIC, 1, 1), (other, 0, 3)]
    offsets, rows, stamps = np.array([4, 4, 9, 0, 1, 2]), np.array([0, 1, 0, 0, 5, 0]), np.arange(6)
    of = [(TOPIC, 0)] * 2 + [(TOPIC, 1)] + [(other, 0)] * 3
    assert [uuid.UUID(bytes=one.tobytes()) for one in prediction_ids(stamps, runs, offsets, rows)] == [
        prediction_id(int(stamp), *where, int(offset), int(row))
        for stamp, where, offset, row in zip(stamps, of, offsets, rows, strict=True)
    ]


def test_nothing_has_no_ids() -> None:
    nothing = np.zeros(0, np.int64)
    for runs in ([], [(TOPIC, 0, 0)], [(TOPIC, 0, 0), (TOPIC, 1, 0)]):
        assert prediction_ids(nothing, runs, nothing, nothing).shape == (0,)


def test_a_million_neighbours_do_not_collide() -> None:
    n = 1_000_000
    ids = prediction_ids(np.full(n, 5, np.int64), [(TOPIC, 3, n)], np.arange(n), np.zeros(n, np.int64))
    assert len(np.unique(ids)) == n


def test_a_timestamp_outside_48_bits_counts_as_zero() -> None:
    assert prediction_id(-1, TOPIC, 0, 0).int >> 80 == 0
    assert prediction_id(1 << 48, TOPIC, 0, 0).int >> 80 == 0
