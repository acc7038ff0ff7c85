"""What the labels stage does with records and with its readiness when partitions move, told step by step."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message, TopicPartition

from runtime.gaps import CUT_AFTER_SEC, Stranded
from runtime.service import Health
from schemas.topics import ALERTS, STATE
from streams.labels.batch import Output
from streams.labels.loop import Labels

TOPIC = "feedback.colour"


class Member:
    """A member of the group to which a rebalance comes when told."""

    def __init__(self) -> None:
        self.stage: Any = None
        self.revokes = False
        self.assigned: list[tuple[str, int, int]] = []
        self.watermarks = (0, 200)

    def poll(self, _timeout_sec: float) -> Message:
        return self.record(100)

    def consume(self, _count: int, _timeout_sec: float) -> list[Message]:
        if self.revokes:
            self.stage._on_revoke(self, [TopicPartition(TOPIC, 0)])
        return [self.record(101)]

    def record(self, offset: int) -> Message:
        return Message(topic=TOPIC, partition=0, offset=offset, value=b"{}", timestamp=(1, 0))

    def assign(self, places: list[TopicPartition]) -> None:
        self.assigned = [(place.topic, place.partition, place.offset) for place in places]

    def get_watermark_offsets(self, _place: TopicPartition, **_: Any) -> tuple[int, int]:
        return self.watermarks


class Transaction:
    """What was called, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))


class Watched:
    def end(self) -> None:
        pass


class Forgetful:
    def clear(self) -> None:
        pass


@pytest.fixture
def stage() -> Any:
    """A stage that has the partition, with nothing around it."""
    made: Any = object.__new__(Labels)
    made._health, made._watch, made._waiting, made._recent = (
        Health("labels"),
        Watched(),
        Forgetful(),
        Forgetful(),
    )
    made._stranded, made._paused = Stranded(), ""
    made._next, made._joined, made._restored, made._started_over = {(TOPIC, 0): 100}, True, True, 0
    made._consumer = Member()
    made._consumer.stage = made
    made._health.set_ready()
    return made


def test_records_that_were_polled_before_a_revocation_are_dropped(stage: Any) -> None:
    assert [each.offset for each in stage._poll()] == [100, 101]
    stage._consumer.revokes = True
    assert stage._poll() == []
    assert stage._next == {}


def test_a_revoked_member_is_ready_again_only_when_the_group_has_told_it_what_it_has(stage: Any) -> None:
    stage._on_revoke(stage._consumer, [TopicPartition(TOPIC, 0)])
    stage._restore(0.0)
    assert not stage._health.snapshot()["ready"]
    assert not stage._restored
    stage._on_assign(stage._consumer, [])
    stage._restore(0.0)
    assert stage._health.snapshot()["ready"]
    assert stage._restored


def test_what_waited_is_settled_only_with_the_groups_consent(stage: Any) -> None:
    """Without offsets the broker would take a transaction of a member whose partitions are another's: it had slept past its session, and
    what was due with it the other had settled meanwhile (found by a fault run)."""
    stage._producer = Transaction()
    settled = Output(state={b"waited": None})
    stage._commit(settled, dict(stage._next), "as it was when polled")
    assert stage._producer.calls == [
        ("begin",),
        ("send_offsets", [TopicPartition(TOPIC, 0, 100)], "as it was when polled"),
        ("produce", STATE.name, None, b"waited"),
        ("commit",),
    ]


class Refusal:
    """What is polled where Kafka does not have what is to be read."""

    def topic(self) -> str:
        return TOPIC

    def partition(self) -> int:
        return 0

    def error(self) -> KafkaError:
        return KafkaError(KafkaError._AUTO_OFFSET_RESET)


def test_where_a_log_was_cut_all_of_it_is_read_once_nobody_doubts_it(stage: Any) -> None:
    """A label that is repeated changes nothing, and of a topic that was made anew nothing was read yet."""
    now_sec = 0.0
    stage._stranded, stage._producer = Stranded(lambda: now_sec), Transaction()
    stage._specs = {TOPIC: SimpleNamespace(name="colour")}
    stage._stage = SimpleNamespace(topic_ids={TOPIC: uuid.uuid4()})
    stage._consumer.watermarks = (3, 5)
    assert stage._stranded.take(Refusal())
    stage._pass_over_gaps()
    assert stage._next == {(TOPIC, 0): 100}
    assert not stage._producer.calls
    now_sec = CUT_AFTER_SEC
    stage._pass_over_gaps()
    assert [call[:2] for call in stage._producer.calls] == [
        ("begin",),
        ("produce", ALERTS.name),
        ("commit",),
    ]
    assert stage._next == {(TOPIC, 0): 3}
    assert stage._consumer.assigned == [(TOPIC, 0, 3)]
    assert not stage._stranded


def test_what_kafka_has_again_is_read_on_without_a_word(stage: Any) -> None:
    stage._producer = Transaction()
    assert stage._stranded.take(Refusal())
    stage._pass_over_gaps()
    assert stage._consumer.assigned == [(TOPIC, 0, 100)]
    assert not stage._producer.calls
    assert not stage._stranded
