"""A static member that ends between the two steps of a cooperative rebalance leaves partitions to nobody."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from runtime.kafka import admin, consumer, create_topics
from runtime.settings import Settings
from runtime.stalls import StallDetector
from runtime.unowned import STRATEGY, UNOWNED_AFTER_SEC, Unowned
from schemas.topics import OBSERVATIONS
from tests.waiting import until

PARTITIONS = 4


@pytest.fixture
def topic(settings: Settings) -> str:
    name = f"shared-{uuid.uuid4()}"
    create_topics(admin(settings), [(name, OBSERVATIONS, PARTITIONS)])
    return name


def member(settings: Settings, topic: str, number: int, **callbacks: Callable[..., None]) -> Consumer:
    """Of a group of the topic's name."""
    client = consumer(settings, topic, member=str(number), **STRATEGY)
    callbacks_of: dict[str, Any] = callbacks
    client.subscribe([topic], **callbacks_of)
    return client


def has(*members: Consumer) -> list[int]:
    """How many partitions each has, after it has looked at what is new."""
    for client in members:
        client.poll(0.05)
    return [len(client.assignment()) for client in members]


def test_what_is_nobodys_is_given_out_again(settings: Settings, topic: str) -> None:
    has_all, gives_back, ended = threading.Event(), threading.Event(), threading.Event()

    def end(*_: object) -> None:
        """As if the process were killed here."""
        gives_back.set()
        ended.wait()

    def begin(_: Consumer, assigned: list[TopicPartition]) -> None:
        if len(assigned) == PARTITIONS:
            has_all.set()

    def live() -> None:
        # Nobody else may ask this client anything meanwhile.
        while not ended.is_set():
            victim.poll(0.05)

    with ExitStack() as closing:
        victim = member(settings, topic, 0, on_assign=begin, on_revoke=end)
        closing.callback(victim.close)
        life = threading.Thread(target=live)
        life.start()
        closing.callback(life.join)
        closing.callback(ended.set)
        look_at = Unowned(settings, topic, [topic])
        assert has_all.wait(60)
        until(lambda: not look_at.places(), "the broker knows")
        second = member(settings, topic, 1)
        closing.callback(second.close)
        until(lambda: has(second) and gives_back.is_set(), "it is to give something back")
        first = member(settings, topic, 0)
        closing.callback(first.close)
        until(lambda: 0 < has(first, second)[0] < PARTITIONS, "its successor has what it was to keep")
        left = look_at.places()
        for _ in range(20):
            assert has(first, second) == [PARTITIONS - len(left), 0]
        assert left
        assert look_at.places() == left, "nobody is going to have it"

        now_sec = [0.0]
        detector = StallDetector(settings, topic, lambda: now_sec[0], shared=[topic])
        closing.callback(detector.close)
        detector.look({})
        now_sec[0] += UNOWNED_AFTER_SEC - 1
        detector.look({})
        assert look_at.places() == left, "a rebalance may take as long"
        now_sec[0] += 1
        giving_out = threading.Thread(target=detector.look, args=({},))
        giving_out.start()
        until(lambda: sum(has(first, second)) == PARTITIONS, "everything is somebody's")
        giving_out.join()
        until(lambda: has(first, second) and not look_at.places(), "the broker knows")
