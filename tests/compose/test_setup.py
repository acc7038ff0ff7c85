"""Setup makes the groups known, so that it is believed at once that they have committed nothing else."""

from __future__ import annotations

import uuid
from contextlib import closing

import pytest
from confluent_kafka import TopicPartition

from compose import setup
from compose.embedded.stack import Stack
from runtime import offsets
from runtime.kafka import admin, consumer, create_topics, producer
from runtime.offsets import committed
from schemas.spec import load_specs
from schemas.topics import REQUESTS


def test_a_group_whose_topics_were_just_made_begins_at_once(
    infrastructure: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, group, name = infrastructure.settings, f"test-{uuid.uuid4()}", f"m-{uuid.uuid4()}"
    spec = next(iter(load_specs(settings.models_dir).values()))
    topic = REQUESTS.for_model(name)
    create_topics(admin(settings), [(topic, REQUESTS, 2)])
    writer = producer(settings)
    writer.produce(topic, b"1", partition=1)
    assert writer.flush(10) == 0
    monkeypatch.setattr(setup, "GROUPS", {group: REQUESTS})
    monkeypatch.setattr(offsets, "CONFIRM_SEC", float("inf"))
    setup._make_known(settings, {name: spec}, [topic])
    with closing(consumer(settings, group)) as client:
        found = committed(client, [TopicPartition(topic, 0), TopicPartition(topic, 1)])
    assert [place.offset for place in found] == [0, -1001]
