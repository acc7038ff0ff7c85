"""The partition's rules, told as sequences of what happens; time is a number."""

from __future__ import annotations

import uuid

import pytest

from streams.sink.partition import (
    BACKOFF_SEC,
    CONFIRM_SEC,
    LINGER_SEC,
    MAX_BACKOFF_SEC,
    TRUNCATED_SEC,
    WAITING_SEC,
    Partition,
)  # fmt: skip
from streams.sink.plan import Plan
from streams.sink.ranges import Limits, Range, Record
from streams.sink.tables import FEEDBACK, OBSERVATIONS, Source, Table

TOPIC_ID = uuid.UUID(int=9)


def partition(
    start: int | None = None,
    plan: tuple[int, int] | None = None,
    table: Table = OBSERVATIONS,
    limits: Limits | None = None,
) -> Partition:
    found = Plan(topic_id=TOPIC_ID, end=plan[0], rows=plan[1]) if plan else None
    return Partition("t", 0, table, Source(TOPIC_ID, None), start, found, limits or Limits())


def take(subject: Partition, *offsets: int, now: float = 0.0, rows: int = 1) -> None:
    for offset in offsets:
        subject.take(Record(offset, 0, rows, 10, frozenset(), b"x"), now)


def why(subject: Partition) -> str:
    return subject.halted


def launched(subject: Partition, now: float) -> Range:
    range_ = subject.due(now)
    assert range_ is not None
    subject.launch(range_, now)
    return range_


def test_the_first_record_after_a_quiet_time_waits_only_the_linger() -> None:
    subject = partition(start=5)
    take(subject, 5, 6, now=100.0)
    assert subject.due(100.0) is None
    range_ = subject.due(100.0 + LINGER_SEC)
    assert range_ is not None
    assert (range_.first, range_.end) == (5, 7)


def test_a_second_range_keeps_its_distance_unless_it_is_full() -> None:
    subject = partition(start=0, limits=Limits(rows=3))
    take(subject, 0)
    launched(subject, 1.0)
    subject.inserted(0.01, 1.01)
    take(subject, 1, now=1.01)
    assert subject.due(1.01 + LINGER_SEC) is None
    assert subject.due(1.0 + subject.table.pace_sec) is not None
    take(subject, 2, 3, now=1.02)
    assert subject.full
    assert subject.due(1.02) is not None


@pytest.mark.parametrize("crowded", [False, True])
def test_a_planned_range_is_let_in_whole_however_crowded_it_is(crowded: bool) -> None:
    recovering, ordinary = partition(start=0, plan=(3, 3)), partition(start=0)
    for subject in (recovering, ordinary):
        assert not subject.enough(1.0, crowded)
        take(subject, 0, 1)
    assert not recovering.enough(1.0, crowded)
    assert ordinary.enough(1.0, crowded) is crowded
    take(recovering, 2)
    launched(recovering, 1.0)
    assert not recovering.enough(1.0, crowded), "nothing is pending"
    assert recovering.enough(1.0 + 2 * WAITING_SEC, crowded), "it waits for ClickHouse"
    recovering.halt("a person is needed")
    assert recovering.enough(1.0, crowded)


def test_nothing_is_cut_while_a_range_is_under_way() -> None:
    subject = partition(start=0)
    take(subject, 0)
    launched(subject, 1.0)
    take(subject, 1, now=1.0)
    assert subject.due(9.0) is None


def test_a_range_starts_where_the_last_one_ended_even_across_transaction_markers() -> None:
    subject = partition(start=0)
    take(subject, 0, 1)
    launched(subject, 1.0)
    subject.inserted(0.01, 1.0)
    take(subject, 3, now=1.0)
    assert launched(subject, 2.0).token == f"{TOPIC_ID}:0:2-3"


def test_after_a_quiet_time_the_end_is_confirmed_with_trailing_markers() -> None:
    subject = partition(start=0)
    take(subject, 0)
    launched(subject, 1.0)
    subject.end(3, 1.0)
    assert subject.confirm_due(1.0 + CONFIRM_SEC) is None
    subject.inserted(0.01, 2.0)
    assert subject.confirm_due(2.0) is None
    assert subject.confirm_due(2.0 + CONFIRM_SEC) == 3
    assert subject.to_confirm == 3
    subject.confirmed(3)
    assert subject.settled
    assert subject.confirm_due(99.0) is None


def test_skipped_records_are_confirmed_without_an_insert() -> None:
    subject = partition(start=0, table=FEEDBACK)
    take(subject, 0, 1, rows=0)
    range_ = launched(subject, 1.0)
    assert range_.rows == 0
    subject.inserted(0.0, 1.0)
    assert subject.confirm_due(1.0 + CONFIRM_SEC) == 2


def test_a_takeover_waits_for_the_whole_planned_range_and_takes_nothing_else() -> None:
    subject = partition(start=10, plan=(13, 3))
    take(subject, 10, 11)
    assert subject.due(50.0) is None
    take(subject, 12, 13)
    range_ = launched(subject, 50.0)
    assert (range_.first, range_.end, range_.rows) == (10, 13, 3)
    assert subject.retrying
    assert [record.offset for record in subject.pending] == [13]


def test_a_planned_range_that_ends_with_the_log_is_complete() -> None:
    subject = partition(start=10, plan=(12, 2))
    take(subject, 10, 11)
    subject.end(13, 0.0)
    assert launched(subject, 1.0).end == 12


def test_a_planned_range_with_other_rows_halts_where_rows_are_counted() -> None:
    subject = partition(start=10, plan=(12, 5))
    take(subject, 10, 11)
    assert subject.due(1.0) is None
    assert "the plan says 5" in why(subject)


def test_a_planned_range_with_other_rows_goes_under_another_token_where_rows_replace_themselves() -> None:
    subject = partition(start=10, plan=(12, 5), table=FEEDBACK)
    take(subject, 10, 11)
    assert launched(subject, 1.0).revised
    assert not subject.halted


def test_a_log_that_ends_before_the_plan_halts_after_a_grace() -> None:
    subject = partition(start=10, plan=(13, 3))
    take(subject, 10)
    subject.end(11, 5.0)
    assert subject.due(5.0 + TRUNCATED_SEC) is None
    assert why(subject) == ""
    assert subject.due(5.1 + TRUNCATED_SEC) is None
    assert "Kafka ends at offset 11" in why(subject)


def test_an_outage_keeps_the_range_and_backs_off() -> None:
    subject = partition(start=0)
    take(subject, 0)
    range_ = launched(subject, 1.0)
    subject.failed("away", 1.0)
    assert subject.paused
    assert not subject.retry_due(1.0 + BACKOFF_SEC / 2)
    assert subject.retry_due(1.0 + BACKOFF_SEC)
    for _ in range(20):
        subject.failed("away", 2.0)
    assert subject.retry_due(2.0 + MAX_BACKOFF_SEC)
    assert subject.flight is range_
    subject.inserted(0.01, 30.0)
    assert not subject.paused


def test_while_clickhouse_is_away_or_does_not_answer_what_follows_stays_in_kafka() -> None:
    subject = partition(start=0)
    take(subject, 0)
    assert not subject.waiting(100.0)
    launched(subject, 100.0)
    take(subject, 1, now=100.5)
    assert not subject.waiting(100.0 + WAITING_SEC)
    assert subject.waiting(100.1 + WAITING_SEC)
    subject.failed("away", 160.0)
    assert subject.waiting(160.0)
    subject.inserted(0.1, 200.0)
    assert not subject.waiting(300.0)
    launched(subject, 300.0)
    assert not subject.waiting(300.0)


def test_poison_halts_after_what_stands_before_it_is_in() -> None:
    subject = partition(start=0)
    take(subject, 0)
    subject.poison(1, "not JSON")
    assert not subject.wants(2)
    launched(subject, 0.0)
    subject.inserted(0.01, 0.1)
    assert why(subject) == ""
    assert subject.due(0.2) is None
    assert why(subject) == "offset 1: not JSON"


def test_a_halted_partition_confirms_nothing() -> None:
    subject = partition(start=0)
    take(subject, 0)
    launched(subject, 1.0)
    subject.halt("refused")
    subject.end(9, 2.0)
    assert subject.confirm_due(99.0) is None
    assert not subject.wants(1)


@pytest.mark.parametrize("offset", [0, 1, 4])
def test_a_record_that_comes_again_is_not_taken_again(offset: int) -> None:
    subject = partition(start=0)
    take(subject, 0, 4)
    assert not subject.wants(offset)
    assert subject.wants(5)
