"""Where topics end and what can be read before an end, on a topic that is written by transactions; and clients that do not answer."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from compose.embedded.ports import HOST, free_ports
from runtime import positions
from runtime.kafka import admin, consumer, create_topics
from runtime.positions import PROBING, EndOffsets, Place, next_record
from runtime.reader import TopicReader
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer
from schemas.errors import Outage
from schemas.topics import OBSERVATIONS
from tests.waiting import until

WITHIN_SEC = 10.0


@pytest.fixture
def place(settings: Settings) -> Place:
    name = f"ends-{uuid.uuid4()}"
    create_topics(admin(settings), [(name, OBSERVATIONS, 1)])
    return name, 0


@pytest.fixture
def writer(settings: Settings) -> Iterator[TransactionalProducer]:
    # What is open stays so, however long this machine pauses: the broker's patience is not what is tested.
    made = TransactionalProducer(settings, f"test-{uuid.uuid4()}", **{"transaction.timeout.ms": 60_000})
    yield made
    made.close()


@pytest.fixture
def prober(settings: Settings) -> Iterator[Consumer]:
    made = consumer(settings, f"test-{uuid.uuid4()}", **PROBING)
    yield made
    made.close()


@pytest.fixture
def reader(settings: Settings) -> Iterator[TopicReader]:
    made = TopicReader(settings, "test")
    yield made
    made.close()


def write(writer: TransactionalProducer, place: Place, *values: bytes, aborted: bool = False) -> None:
    """One transaction: its records and a marker."""
    writer.begin()
    for value in values:
        writer.produce(place[0], value, partition=place[1])
    assert writer._producer.flush(WITHIN_SEC) == 0  # what is aborted before it was sent never comes
    (writer.abort if aborted else writer.commit)()


def markers_written(settings: Settings, place: Place, end: int) -> None:
    """A commit returns before its markers are written."""
    ends = EndOffsets(settings)
    until(lambda: ends.at([place], stable=True)[place] == end, f"the stable end is {end}")


def test_an_open_transaction_is_before_the_end_and_behind_the_stable_end(
    settings: Settings, place: Place, writer: TransactionalProducer
) -> None:
    ends = EndOffsets(settings)
    write(writer, place, b"1")
    markers_written(settings, place, 2)
    writer.begin()
    writer.produce(place[0], b"2", partition=0)
    until(lambda: ends.of([place[0]]) == {place: 3}, "the open transaction's record")
    assert ends.of([place[0]], stable=True) == ends.at([place], stable=True) == {place: 2}


def test_what_follows_is_a_record_or_else_where_the_reader_ends(
    settings: Settings, place: Place, writer: TransactionalProducer, prober: Consumer
) -> None:
    write(writer, place, b"1")
    write(writer, place, b"2", aborted=True)
    markers_written(settings, place, 4)
    found = next_record(prober, place, 0, within_sec=WITHIN_SEC)
    assert not isinstance(found, int)
    assert found.value() == b"1"
    assert next_record(prober, place, 1, within_sec=WITHIN_SEC, end=4) == 4
    assert next_record(prober, place, 4, within_sec=WITHIN_SEC) == 4
    write(writer, place, b"3")
    markers_written(settings, place, 6)
    again = next_record(prober, place, 1, within_sec=WITHIN_SEC, end=6)
    assert not isinstance(again, int)
    assert (again.offset(), again.value()) == (4, b"3")


def test_a_question_that_is_not_answered_in_time_is_an_outage(
    prober: Consumer, place: Place, writer: TransactionalProducer
) -> None:
    write(writer, place, b"1")
    with pytest.raises(Outage, match=place[0]):
        next_record(prober, place, 1, within_sec=0.5, end=100)


def test_without_a_broker_the_ends_are_an_outage() -> None:
    nowhere = msgspec.structs.replace(Settings(), kafka_bootstrap=f"{HOST}:{free_ports(1)[0]}")
    with pytest.raises(Outage, match="observations"):
        EndOffsets(nowhere, timeout_sec=0.1).at([("observations", 0)])


def test_a_partition_that_does_not_exist_is_an_outage(settings: Settings, place: Place) -> None:
    ends = EndOffsets(settings)
    with pytest.raises(Outage, match=place[0]):
        ends.at([place, (place[0], 7)])
    assert ends.at([place]) == {place: 0}


class Broken:
    """A consumer that gives no good answer."""

    def __init__(self, refusal: KafkaError, part: bool) -> None:
        self._refusal, self._part = refusal, part
        self.closed = False

    def offsets_for_times(self, asked: list[TopicPartition], **_: Any) -> list[Any]:
        if not self._part:
            raise KafkaException(self._refusal)
        return [
            SimpleNamespace(topic=each.topic, partition=each.partition, offset=-1, error=self._refusal)
            for each in asked
        ]

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("part", [False, True], ids=["the question", "a partition of it"])
def test_a_client_that_fails_is_replaced(
    settings: Settings, place: Place, monkeypatch: pytest.MonkeyPatch, part: bool
) -> None:
    ends = EndOffsets(settings)
    broken = Broken(KafkaError(KafkaError.FENCED_LEADER_EPOCH), part)
    monkeypatch.setattr(positions, "consumer", lambda *_, **__: broken)
    with pytest.raises(Outage, match=place[0]):
        ends.at([place])
    assert broken.closed
    monkeypatch.undo()
    assert ends.at([place]) == {place: 0}


def test_a_topic_is_read_to_where_it_ends_and_no_further(
    settings: Settings, place: Place, writer: TransactionalProducer, reader: TopicReader
) -> None:
    write(writer, place, b"1", b"2")
    write(writer, place, b"no", aborted=True)
    write(writer, place, b"3")
    markers_written(settings, place, 7)
    reading = reader.whole(reader.places(place[0]))
    assert next(reading).value() == b"1"
    write(writer, place, b"later")
    assert [message.value() for message in reading] == [b"2", b"3"]


def test_a_reader_says_so_if_nothing_comes(
    place: Place, writer: TransactionalProducer, reader: TopicReader
) -> None:
    write(writer, place, b"1")
    reader.begin({place: 0})
    with pytest.raises(Outage, match="nothing came"):
        list(reader.read_to({place: 100}, patience_sec=0.5))
    with pytest.raises(Outage, match="no-such-topic"):
        reader.places("no-such-topic")
