from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.sink.ranges import Limits, Range, Record, cut

LIMITS = Limits(rows=10, bytes=100, table_partitions=1)


def record(rows: int = 1, size: int = 1, months: tuple[int, ...] = (1,), offset: int = 0) -> Record:
    return Record(offset, 0, rows, size, frozenset(months), None)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], 0),
        ([record(rows=4), record(rows=6), record(rows=1)], 2),
        ([record(size=60), record(size=40), record(size=1)], 2),
        ([record(rows=11), record()], 1),
        ([record(size=101), record()], 1),
        ([record(months=(1,)), record(months=(2,))], 1),
        ([record(months=(1, 2)), record()], 1),
        ([record(rows=0, months=())] * 11, 10),
    ],
    ids=[
        "none", "rows", "bytes", "one record may have too many rows", "one record may be too large", "a new month",
        "one record may span months", "skipped records are bounded too",
    ],
)  # fmt: skip
def test_a_range_ends_where_a_limit_would_be_passed(records: list[Record], expected: int) -> None:
    assert cut(records, LIMITS) == expected


RECORDS = st.lists(
    st.builds(
        record,
        rows=st.integers(0, 14),
        size=st.integers(0, 120),
        months=st.sampled_from([(1,), (2,), (1, 2)]),
    )
)


@given(RECORDS)
def test_cutting_again_and_again_takes_each_record_once_and_keeps_to_the_limits(
    records: list[Record],
) -> None:
    taken = 0
    while taken < len(records):
        count = cut(records[taken:], LIMITS)
        part = records[taken : taken + count]
        assert count >= 1
        if count > 1:
            assert sum(max(one.rows, 1) for one in part) <= LIMITS.rows
            assert sum(one.bytes for one in part) <= LIMITS.bytes
            assert len(frozenset().union(*(one.table_partitions for one in part))) <= LIMITS.table_partitions
        taken += count
    assert taken == len(records)


def test_the_token_names_topic_id_partition_and_offsets() -> None:
    range_ = Range("t", uuid.UUID(int=1), 3, 10, 15, (record(rows=2), record(rows=3)))
    assert range_.token == f"{uuid.UUID(int=1)}:3:10-14"
    assert range_.rows == 5


def test_a_range_that_makes_other_rows_than_planned_has_a_token_of_its_own() -> None:
    range_ = Range("t", uuid.UUID(int=1), 3, 10, 15, (record(),))
    assert range_._replace(revised=True).token != range_.token
