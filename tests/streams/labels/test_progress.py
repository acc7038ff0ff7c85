"""How far the sink is, told whatever fails; and a stage that cannot be told ends."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from runtime.kafka import admin, consumer, create_topics
from runtime.positions import Place
from runtime.service import PROGRESS_LIMIT_SEC
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer
from schemas.errors import TidemillError
from schemas.topics import OUTCOMES
from streams.labels import progress
from streams.labels.progress import LONGEST_GAP_SEC, STANDS_ROUNDS, SinkProgress
from tests.waiting import until


@pytest.mark.stack
def test_what_the_sink_has_committed_counts_though_a_probe_fails(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, topic = f"sink-{uuid.uuid4()}", f"outcomes-{uuid.uuid4()}"
    create_topics(admin(settings), [(topic, OUTCOMES, 2)])
    writer = TransactionalProducer(settings, f"test-{uuid.uuid4()}")
    writer.begin()
    for partition in (0, 1):
        writer.produce(topic, b"x", partition=partition)
    writer.commit()
    writer.close()
    committed(settings, group, topic)
    monkeypatch.setattr(progress, "SINK_GROUP", group)
    following = SinkProgress(settings, (topic,))
    for _ in range(STANDS_ROUNDS):
        assert following.follow()

    def refused(_client: Any, place: Place, *_: Any, **__: Any) -> int:
        if place[1] == 1:
            raise KafkaException(KafkaError(KafkaError.FENCED_LEADER_EPOCH))
        return 2

    with monkeypatch.context() as broken:
        broken.setattr(progress, "next_record", refused)
        assert not following.follow()
        assert following.passed({(topic, 0): 2, (topic, 1): 1})
        assert not following.passed({(topic, 1): 2})
    # Behind both records there are markers only.
    until(lambda: following.follow() and following.passed({(topic, 0): 2, (topic, 1): 2}), "the rest")


def committed(settings: Settings, group: str, topic: str) -> None:
    """The group is behind the first record of each partition, and before its transaction's marker."""
    client = consumer(settings, group)
    client.commit(offsets=[TopicPartition(topic, partition, 1) for partition in (0, 1)], asynchronous=False)
    client.close()


def test_a_stage_that_nobody_tells_how_far_the_sink_is_ends_but_not_for_an_outage_or_a_stop() -> None:
    following = SinkProgress(Settings(kafka_bootstrap="127.0.0.1:1"), ("outcomes",))
    following.start()
    enough = int(PROGRESS_LIMIT_SEC / LONGEST_GAP_SEC)
    following.insist(100 * PROGRESS_LIMIT_SEC)  # the process was stopped
    for _ in range(enough - 1):
        following.insist(LONGEST_GAP_SEC)
    following.excuse()  # the caller is not answered either
    for _ in range(enough):
        following.insist(LONGEST_GAP_SEC)
    with pytest.raises(TidemillError, match="how far the sink is"):
        following.insist(LONGEST_GAP_SEC)
    following.end()


def test_a_stage_whose_follower_is_dead_ends() -> None:
    following = SinkProgress(Settings(kafka_bootstrap="127.0.0.1:1"), ("outcomes",))
    with pytest.raises(TidemillError):
        following.insist(0.0)
