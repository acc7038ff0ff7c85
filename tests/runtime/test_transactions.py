"""The transactional producer on a real broker: all or nothing, fenced by its successor, usable again after whatever went wrong."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator

import msgspec
import pytest
from confluent_kafka import Producer, TopicPartition

from runtime import transactions
from runtime.compacted import CompactedTopic
from runtime.kafka import admin, consumer, create_topics, topic_ids
from runtime.offsets import or_start, told
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer, TransactionLost
from schemas.errors import Fenced
from schemas.topics import ROUTES
from tests.waiting import until


@pytest.fixture
def topic(settings: Settings) -> str:
    name = f"test-{uuid.uuid4()}"
    create_topics(admin(settings), [(name, msgspec.structs.replace(ROUTES, name=name), 1)])
    return name


@pytest.fixture
def writer(settings: Settings) -> Iterator[TransactionalProducer]:
    producer = TransactionalProducer(settings, f"test-{uuid.uuid4()}")
    yield producer
    producer.close()


def committed(settings: Settings, topic: str) -> dict[bytes, bytes]:
    reader = CompactedTopic(settings, topic)
    reader.close()
    return reader.values


def test_an_aborted_record_is_never_seen(
    settings: Settings, topic: str, writer: TransactionalProducer
) -> None:
    for key, end in ((b"a", writer.commit), (b"b", writer.abort), (b"c", writer.commit)):
        writer.begin()
        writer.produce(topic, b"1", key=key)
        end()
    assert set(committed(settings, topic)) == {b"a", b"c"}


def test_what_comes_of_a_topic_is_spread_over_all_partitions_of_another(
    settings: Settings, writer: TransactionalProducer
) -> None:
    name = f"test-{uuid.uuid4()}"
    create_topics(admin(settings), [(name, msgspec.structs.replace(ROUTES, name=name), 3)])
    homes = [writer.home(name, f"requests.m:{partition}") for partition in range(6)]
    assert sorted(homes[:3]) == [0, 1, 2]
    assert homes[3:] == homes[:3]


def test_a_topic_that_is_not_there_loses_the_transaction(
    settings: Settings, topic: str, writer: TransactionalProducer
) -> None:
    writer.begin()
    writer.produce(topic, b"1", key=b"a")
    with pytest.raises(TransactionLost, match="no-such-topic"):
        writer.home("no-such-topic", "requests.m:0")
    writer.begin()
    writer.produce(topic, b"1", key=b"b")
    writer.commit()
    assert set(committed(settings, topic)) == {b"b"}


def test_a_successor_fences_and_what_was_open_is_gone(settings: Settings, topic: str) -> None:
    name = f"test-{uuid.uuid4()}"
    zombie = TransactionalProducer(settings, name)
    zombie.begin()
    zombie.produce(topic, b"late", key=b"zombie")
    successor = TransactionalProducer(settings, name)
    successor.begin()
    successor.produce(topic, b"1", key=b"successor")
    successor.commit()
    with pytest.raises(Fenced):
        zombie.commit()
    assert set(committed(settings, topic)) == {b"successor"}
    successor.close()


def test_a_zombie_that_goes_on_writing_is_fenced_and_fences_nobody(settings: Settings, topic: str) -> None:
    """The broker's word comes while it writes, and its client then says only that it is done for."""
    name = f"test-{uuid.uuid4()}"
    zombie = TransactionalProducer(settings, name)
    successor = TransactionalProducer(settings, name)
    zombie.begin()
    with pytest.raises(Fenced):
        until(lambda: zombie.produce(topic, b"late", key=b"zombie"), "nothing: it is fenced")
    successor.begin()
    successor.produce(topic, b"1", key=b"successor")
    successor.commit()
    assert set(committed(settings, topic)) == {b"successor"}
    successor.close()


class Hanging:
    """A producer in whose hands the offsets are never sent."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self.released = threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._producer, name)

    def send_offsets_to_transaction(self, *_: object) -> None:
        self.released.wait()


def test_a_call_that_never_comes_back_loses_the_transaction_and_the_producer_goes_on(
    settings: Settings, topic: str, writer: TransactionalProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "_HUNG_SEC", 0.5)
    hanging = Hanging(writer._producer)
    monkeypatch.setattr(writer, "_producer", hanging)
    writer.begin()
    writer.produce(topic, b"1", key=b"lost")
    with pytest.raises(TransactionLost, match="has not come back"):
        writer.send_offsets([], None)
    writer.begin()
    writer.produce(topic, b"1", key=b"next")
    writer.commit()
    hanging.released.set()
    assert set(committed(settings, topic)) == {b"next"}


def test_a_record_that_is_too_large_loses_the_transaction_and_the_producer_goes_on(
    settings: Settings, topic: str
) -> None:
    writer = TransactionalProducer(
        settings, f"test-{uuid.uuid4()}", **{"message.max.bytes": 32 * 1024 * 1024}
    )
    writer.begin()
    writer.produce(topic, b"1", key=b"with the large one")
    writer.produce(topic, os.urandom(16 << 20), key=b"large")
    with pytest.raises(TransactionLost):
        writer.commit()
    writer.begin()
    writer.produce(topic, b"1", key=b"after")
    writer.commit()
    assert set(committed(settings, topic)) == {b"after"}
    writer.close()


def test_offsets_are_committed_with_the_records_or_not_at_all(
    settings: Settings, topic: str, writer: TransactionalProducer
) -> None:
    reader = consumer(settings, f"test-{uuid.uuid4()}")
    place = [TopicPartition(topic, 0)]
    assert or_start(reader, told(reader, place))[0].offset == 0
    for offset, end in ((5, writer.abort), (7, writer.commit)):
        writer.begin()
        writer.send_offsets([TopicPartition(topic, 0, offset)], reader.consumer_group_metadata())
        end()
        assert or_start(reader, told(reader, place))[0].offset == (0 if offset == 5 else 7)
    reader.close()


def test_a_recreated_topic_has_another_id(settings: Settings) -> None:
    client, name = admin(settings), f"test-{uuid.uuid4()}"
    wanted = [(name, msgspec.structs.replace(ROUTES, name=name), 1)]
    create_topics(client, wanted)
    first = topic_ids(client, [name])
    client.delete_topics([name])[name].result()
    # Deletion and creation are asynchronous in the broker; the test's own time limit ends these.
    while not create_topics(client, wanted):
        pass
    while not (second := topic_ids(client, [name])):
        pass
    assert second[name] != first[name]
    assert topic_ids(client, ["ghost"]) == {}
