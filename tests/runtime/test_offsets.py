"""When a group that is said to have committed nothing is believed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from runtime import offsets
from runtime.kafka import admin, consumer, create_topics, producer
from runtime.offsets import committed, or_start
from runtime.settings import Settings
from schemas.topics import OBSERVATIONS

NEVER = -1001


@pytest.fixture
def topic(settings: Settings) -> str:
    """Two partitions; a record in the first."""
    name = f"test-{uuid.uuid4()}"
    create_topics(admin(settings), [(name, OBSERVATIONS, 2)])
    writer = producer(settings)
    writer.produce(name, b"1", partition=0)
    assert writer.flush(10) == 0
    return name


@pytest.fixture
def group() -> str:
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def client(settings: Settings, group: str) -> Iterator[Consumer]:
    with closing(consumer(settings, group)) as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "CONFIRM_SEC", 0.3)
    monkeypatch.setattr(offsets, "RETRY_SEC", 0.1)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is believed by waiting."""
    monkeypatch.setattr(offsets, "CONFIRM_SEC", float("inf"))
    monkeypatch.setattr(offsets, "RETRY_SEC", 0.1)


def told(found: list[TopicPartition]) -> list[int]:
    return [place.offset for place in found]


def test_none_is_believed_of_what_is_empty(topic: str, client: Consumer, endless: None) -> None:
    assert told(committed(client, [TopicPartition(topic, 1)])) == [NEVER]


def test_none_is_believed_of_a_group_that_has_other_offsets(
    topic: str, client: Consumer, endless: None
) -> None:
    client.commit(offsets=[TopicPartition(topic, 1, 0)], asynchronous=False)
    places = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
    assert told(committed(client, places)) == [NEVER, 0]
    assert told(or_start(client, committed(client, places))) == [0, 0]


def test_a_new_group_is_believed_after_a_while(topic: str, client: Consumer, impatient: None) -> None:
    began = time.monotonic()
    assert told(committed(client, [TopicPartition(topic, 0)])) == [NEVER]
    assert time.monotonic() >= began + 0.3


class Forgetful:
    """A member whose broker has not read the group's offsets yet, the first few times it is asked."""

    def __init__(self, client: Consumer, times: int) -> None:
        self._client, self._left = client, times

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self._left -= 1
        if self._left >= 0:
            return [TopicPartition(place.topic, place.partition, NEVER) for place in places]
        return self._client.committed(places, timeout=timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_a_broker_that_has_forgotten_is_asked_again(
    topic: str, client: Consumer, endless: None, times: int
) -> None:
    """At whichever question it has read the group's offsets."""
    client.commit(offsets=[TopicPartition(topic, 0, 1)], asynchronous=False)
    forgetful: Any = Forgetful(client, times)
    assert told(committed(forgetful, [TopicPartition(topic, 0)])) == [1]
