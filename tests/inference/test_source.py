"""What the gateway's consumer does when partitions come and go."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.cimpl import NewPartitions

from compose.embedded.stack import Stack
from inference.progress import Assignment, Progress
from inference.source import Source
from runtime.gaps import Gap
from runtime.kafka import admin, consumer, create_topics
from runtime.settings import Settings
from runtime.topics import Topics
from schemas.errors import Outage
from schemas.topics import REDRIVES, REQUESTS
from tests.inference.serving import send
from tests.retention import drop_before
from tests.waiting import until

COOPERATIVE: dict[str, Any] = {"partition.assignment.strategy": "cooperative-sticky"}


@pytest.fixture
def settings(infrastructure: Stack) -> Settings:
    return infrastructure.settings


@pytest.fixture
def topics(settings: Settings) -> Iterator[tuple[str, str]]:
    """Requests and redrives of this test's own, with two partitions."""
    name = str(uuid.uuid4())
    found = f"requests.{name}", f"redrives.{name}"
    client = admin(settings)
    create_topics(client, [(found[0], REQUESTS, 2), (found[1], REDRIVES, 2)])
    yield found
    for deleted in client.delete_topics(list(found)).values():
        deleted.result(10)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> str:
    """A group without other tests' members: of those that ended just now, a rebalance waits for the session's end."""
    name = f"gateway-{uuid.uuid4()}"
    monkeypatch.setattr("inference.source.GROUP", name)
    return name


def test_a_pause_does_not_outlive_an_assignment(
    settings: Settings, topics: tuple[str, str], group: str
) -> None:
    requests, redrives = topics
    progress = Progress()
    both = {0, 1}

    with closing(Source(settings, {requests: redrives}, progress, threading.Lock())) as source:

        def owned_while_paused(beside: Callable[[], Any] = lambda: None) -> set[int]:
            source.poll(0.05, topics)
            beside()
            return {each.partition for each in progress.assignments() if each.topic == requests}

        until(lambda: owned_while_paused() == both, "both partitions are assigned")
        with closing(consumer(settings, group, **COOPERATIVE)) as other:
            other.subscribe([requests])
            until(lambda: len(owned_while_paused(lambda: other.poll(0.05))) == 1, "one goes elsewhere")
        until(lambda: owned_while_paused() == both, "it comes back")
        send(settings, [{"value": b"", "partition": partition} for partition in both], requests)
        read: set[int] = set()

        def read_of_both() -> bool:
            read.update(fragment.assignment.partition for fragment in source.poll(0.05, ()))
            return read == both

        until(read_of_both, "a record of each partition", 20)


def test_what_could_not_be_gone_back_to_is_known_to_wait(
    settings: Settings, topics: tuple[str, str], group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, redrives = topics
    progress = Progress()
    with closing(Source(settings, {requests: redrives}, progress, threading.Lock())) as source:

        def owned() -> set[tuple[str, int]]:
            source.poll(0.05, ())
            return {(each.topic, each.partition) for each in progress.assignments()}

        until(lambda: len(owned()) == 4, "both partitions of both topics are assigned")
        assert source.waiting() == set()
        everything = owned()

        def away(*_: object) -> set[tuple[str, int]]:
            raise Outage("Kafka is away")

        with monkeypatch.context() as broken:
            broken.setattr(Topics, "places", away)
            with pytest.raises(Outage):
                source.rewind()
            assert source.waiting() == everything
        source.rewind()
        assert source.waiting() == set()
        assert owned() == everything


def test_a_follower_that_is_made_later_is_begun_then(settings: Settings, group: str) -> None:
    name = str(uuid.uuid4())
    requests, redrives = f"requests.{name}", f"redrives.{name}"
    client, progress = admin(settings), Progress()
    create_topics(client, [(requests, REQUESTS, 2), (redrives, REDRIVES, 1)])

    def begun() -> set[tuple[str, int]]:
        source.poll(0.05, ())
        with suppress(KafkaException):  # the consumer has not heard of it yet
            source.begin_made()
        return {(each.topic, each.partition) for each in progress.assignments()}

    with closing(Source(settings, {requests: redrives}, progress, threading.Lock())) as source:
        there = {(requests, 0), (requests, 1), (redrives, 0)}
        until(lambda: begun() == there, "what is there is begun")
        assert source.waiting() == set()
        for added in client.create_partitions([NewPartitions(redrives, 2)]).values():
            added.result(10)
        until(lambda: begun() == {*there, (redrives, 1)}, "what was made is begun")
    for deleted in client.delete_topics([requests, redrives]).values():
        deleted.result(10)


class Reading:
    """A source on partition 0 of `requests`, polled until something comes about."""

    def __init__(self, source: Source, progress: Progress, requests: str) -> None:
        self.source, self._progress, self._requests = source, progress, requests
        self.offsets: list[int | None] = []
        """What was read, in order."""
        self.paused: set[str] = set()

    @property
    def assignment(self) -> Assignment | None:
        return self._progress.of(self._requests, 0)

    def poll(self) -> None:
        for fragment in self.source.poll(0.05, self.paused):
            self.offsets += [message.offset() for message in fragment.messages]

    def until_read(self, offsets: list[int]) -> None:
        def read() -> bool:
            self.poll()
            return self.offsets == offsets

        until(read, f"{offsets} are read", 20)

    def until_gap(self) -> tuple[Assignment, Gap]:
        found: list[tuple[Assignment, Gap]] = []

        def met() -> bool:
            self.poll()
            found[:] = self.source.gaps()
            return bool(found)

        until(met, "a gap is met", 20)
        (only,) = found
        return only


@pytest.fixture
def reading(settings: Settings, topics: tuple[str, str], group: str) -> Iterator[Callable[[], Reading]]:
    """Opens the source when it is called."""
    requests, redrives = topics
    progress, opened = Progress(), []

    def open_source() -> Reading:
        opened.append(Source(settings, {requests: redrives}, progress, threading.Lock()))
        return Reading(opened[0], progress, requests)

    yield open_source
    for source in opened:
        source.close()


def written(settings: Settings, topic: str, records: int) -> None:
    send(settings, [{"value": b"", "partition": 0}] * records, topic)


def answered(settings: Settings, group: str, topic: str, offset: int) -> None:
    """The group has committed up to this offset."""
    with closing(consumer(settings, group)) as client:
        client.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)


def test_what_kafka_dropped_before_it_was_read_is_told_and_then_passed_over(
    settings: Settings, topics: tuple[str, str], group: str, reading: Callable[[], Reading]
) -> None:
    topic = topics[0]
    written(settings, topic, 10)
    answered(settings, group, topic, 2)
    drop_before(settings, (topic, 0), 6)
    of = reading()
    assignment, gap = of.until_gap()
    assert gap == Gap((topic, 0), 2, 6, cut=False)
    assert of.source.gaps() == [(assignment, gap)], "until it is passed over"
    assert of.offsets == []
    of.source.pass_over(assignment, gap)
    assert of.source.gaps() == []
    of.until_read([6, 7, 8, 9])
    assert assignment.committed == 2, "until something behind it is committed"


def test_what_was_read_before_a_gap_stays_and_is_answered(
    settings: Settings, topics: tuple[str, str], reading: Callable[[], Reading]
) -> None:
    topic = topics[0]
    written(settings, topic, 4)
    of = reading()
    of.until_read([0, 1, 2, 3])
    held = of.assignment
    of.paused = {topic}
    of.poll()
    written(settings, topic, 6)
    drop_before(settings, (topic, 0), 7)
    of.paused = set()
    assignment, gap = of.until_gap()
    assert assignment is held
    assert gap == Gap((topic, 0), 4, 7, cut=False)
    of.source.pass_over(assignment, gap)
    of.until_read([0, 1, 2, 3, 7, 8, 9])
    assert of.assignment is held
    assert held is not None
    assert (held.ended, held.held_records, held.position) == (False, 7, 10)


def test_a_log_that_was_cut_is_told_once_nobody_doubts_it_and_read_again_where_it_was_left(
    settings: Settings, topics: tuple[str, str], group: str, reading: Callable[[], Reading],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    topic = topics[0]
    written(settings, topic, 4)
    answered(settings, group, topic, 6)
    of = reading()

    def told() -> bool:
        of.poll()
        return any(record.name == "runtime.gaps" for record in caplog.records)

    until(told, "it is known that nothing is there", 20)
    assert of.source.gaps() == []
    monkeypatch.setattr("runtime.gaps.CUT_AFTER_SEC", 0.0)
    assignment, gap = of.until_gap()
    assert gap == Gap((topic, 0), 4, 6, cut=True)
    of.source.pass_over(assignment, gap)
    assert of.source.gaps() == [(assignment, gap)], "nothing lies behind it"
    written(settings, topic, 3)
    assert of.source.gaps() == []
    of.until_read([6])
