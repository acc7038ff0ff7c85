"""Backlogs on a real broker."""

from __future__ import annotations

import uuid
from contextlib import closing

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.cimpl import NewTopic

from benchmarks.load import Bodies, HeldBacklog, ends
from benchmarks.meter import Committed, Lag, wait_caught_up
from compose.embedded.stack import Stack
from runtime.kafka import admin, consumer
from runtime.settings import Settings

POOL = Bodies([b"one", b"two", b"three"], 1, [("content-type", b"application/json")])


@pytest.fixture
def topic(infrastructure: Stack) -> str:
    name = f"bench-{uuid.uuid4().hex}"
    client = admin(infrastructure.settings)
    for future in client.create_topics([NewTopic(name, 2, 1)]).values():
        future.result(10)
    return name


def commit(settings: Settings, group: str, topic: str, offsets: dict[int, int]) -> None:
    with closing(consumer(settings, group)) as client:
        places = [TopicPartition(topic, p, offset) for p, offset in offsets.items()]
        client.commit(offsets=places, asynchronous=False)


def test_a_held_backlog_can_be_read_once_it_is_released_and_not_before(
    infrastructure: Stack, topic: str
) -> None:
    settings = infrastructure.settings
    held = HeldBacklog(settings, topic, POOL, 100)
    assert ends(settings, topic) == {0: 0, 1: 0}, "where a read-committed reader's records end"
    backlog = held.release()
    assert (backlog.records, backlog.rows) == (100, 100)
    assert all(backlog.end.values()), "keys are spread over the partitions"
    again = HeldBacklog(settings, topic, POOL, 50).release()
    assert again.start == {p: end + 1 for p, end in backlog.end.items()}, "a marker lies between them"
    assert again.records == 50


def test_a_group_that_has_committed_its_last_record_has_caught_up_though_a_marker_follows(
    infrastructure: Stack, topic: str
) -> None:
    settings, group = infrastructure.settings, f"bench-{uuid.uuid4().hex}"
    backlog = HeldBacklog(settings, topic, POOL, 100).release()
    with (
        closing(Lag(settings, group, topic)) as lag,
        closing(Committed(settings, group, backlog)) as committed,
    ):
        assert (lag(), committed()) == (100 + 2, 0)
        commit(settings, group, topic, backlog.end)
        assert (lag.by_partition(), committed()) == ([1, 1], 100)
    wait_caught_up(settings, group, topic, timeout_sec=0)
