"""A client that delivers nothing any more costs no record and doubles none."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.faults import sender
from benchmarks.faults.sender import Record, Sender, Undelivered
from compose.embedded.stack import Stack
from runtime.kafka import admin, create_topics, producer
from runtime.settings import Settings
from schemas.topics import REQUESTS
from tests.reader import Reader
from tests.waiting import until


@pytest.fixture(scope="module")
def settings(infrastructure: Stack) -> Settings:
    return infrastructure.settings


@pytest.fixture
def topic(settings: Settings) -> Iterator[str]:
    name = f"requests.{uuid.uuid4()}"
    client = admin(settings)
    create_topics(client, [(name, REQUESTS, 2)])
    yield name
    client.delete_topics([name])[name].result(10)


class Stuck:
    """Takes what it is given, brings a part of it to the broker, and never says so."""

    def __init__(self, settings: Settings, brings: int) -> None:
        self._real, self._left = producer(settings), brings

    def produce(self, topic: str, value: bytes, key: bytes, partition: int, **_: Any) -> None:
        if self._left:
            self._left -= 1
            self._real.produce(topic, value, key, partition)
            assert self._real.flush(10) == 0

    def poll(self, _timeout_sec: float) -> None:
        pass

    def purge(self) -> None:
        pass


@pytest.mark.parametrize("brings", [0, 5, 8])
def test_another_client_takes_over_what_is_there_and_sends_the_rest(
    settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch, brings: int
) -> None:
    monkeypatch.setattr(sender, "SETTLE_SEC", 0.0)
    why: list[str] = []
    sending = Sender(settings, why.append)
    lies: dict[int, int] = {}

    def send(number: int) -> None:
        record = Record(topic, b"%d" % number, b"", number % 2, 1, None, lambda at: lies.update({number: at}))
        sending.send(record)

    for number in range(4):
        send(number)
    sending.flush()
    assert not why
    sending._client = Stuck(settings, brings)
    for number in range(4, 12):
        send(number)
    monkeypatch.setattr(sender, "REPLACE_SEC", 0.0)
    sending.poll(0)
    monkeypatch.undo()
    assert len(why) == 1
    sending.flush()
    send(12)
    sending.flush()
    found = Reader(settings, topic, from_start=True)
    there = {int(m.value() or b""): m.offset() for m in found.until(13)}
    found.expect_no_more()
    found.close()
    assert there == lies == {number: number // 2 for number in range(13)}


def test_what_no_client_delivers_ends_the_load(
    settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = Sender(settings)
    sending._client = Stuck(settings, 0)
    sending.send(Record(topic, b"", b"", 0, 1, None, lambda _: None))
    monkeypatch.setattr(sender, "STUCK_SEC", 0.0)
    with pytest.raises(Undelivered, match="none of 1 records"):
        until(lambda: sending.poll(0), "the load gives up", 5)
