"""What the gateway's consumer does when partitions come and go."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.cimpl import NewPartitions

from compose.embedded.stack import Stack
from inference.progress import Progress
from inference.source import Source
from runtime.kafka import admin, consumer, create_topics
from runtime.settings import Settings
from runtime.topics import Topics
from schemas.errors import Outage
from schemas.topics import REDRIVES, REQUESTS
from tests.inference.serving import send
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
