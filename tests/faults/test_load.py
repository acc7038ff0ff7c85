"""What the load knows of where its records lie is all that the account believes."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from confluent_kafka import Message

from benchmarks.faults import load, sender
from benchmarks.faults.sender import Acknowledged
from runtime.settings import Settings

UNTOLD = -1001
"""As librdkafka has it of a record that the broker had already."""


def acknowledged(*told: tuple[int, int]) -> list[int]:
    """Offsets of records that are acknowledged as lying in a partition at an offset."""
    places = Acknowledged()
    return [places.offset(Message(topic="requests.m", partition=p, offset=offset)) for p, offset in told]


def test_a_record_that_the_broker_had_already_lies_behind_the_one_before_it() -> None:
    assert acknowledged((0, 6), (1, 3), (0, UNTOLD), (0, UNTOLD), (1, 4), (0, 9)) == [6, 3, 7, 8, 4, 9]


def test_the_first_record_of_a_partition_lies_at_its_start() -> None:
    assert acknowledged((2, UNTOLD), (2, UNTOLD)) == [0, 1]


def test_a_topic_that_was_made_again_begins_at_its_start_and_others_go_on() -> None:
    places = Acknowledged()
    for topic in ("requests.m", "feedback.m"):
        assert places.offset(Message(topic=topic, partition=0, offset=6)) == 6
    places.begin_anew("requests.m")
    assert places.offset(Message(topic="requests.m", partition=0, offset=UNTOLD)) == 0
    assert places.offset(Message(topic="feedback.m", partition=0, offset=UNTOLD)) == 7


class Batching:
    """A producer whose broker had every record already: it tells no offset, and the batch's newest timestamp for each."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def produce(self, topic: str, value: bytes, key: bytes, partition: int, **more: Any) -> None:
        self.sent.append({"topic": topic, "partition": partition, **more})

    def acknowledge(self) -> None:
        for each in self.sent:
            told = Message(
                topic=each["topic"], partition=each["partition"], offset=UNTOLD, timestamp=(1, 2**41)
            )
            each["on_delivery"](None, told)


def test_a_record_has_the_timestamp_that_it_was_sent_with_whatever_its_acknowledgement_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sending = Batching()
    clock = iter(range(1_700_000_000_000, 1_800_000_000_000))
    monkeypatch.setattr(sender, "producer", lambda *_, **__: sending)
    monkeypatch.setattr(load, "now_ms", lambda: next(clock))
    made = load.Load(Settings(), load.Ledger(1), 1000.0, "snapshot")
    made.ledger.generation(uuid.uuid4())
    made._send_block(0, 250)
    sending.acknowledge()
    requests = [each["timestamp"] for each in sending.sent if each["topic"].startswith("requests")]
    assert made.ledger.timestamps_ms[:250].tolist() == requests
    assert len(set(requests)) == 250
    odd = {each["timestamp"] for each in sending.sent if each["topic"].startswith("feedback")}
    assert {at_ms for _, _, at_ms in made.ledger.odd_feedback.values()} <= odd
    assert made.ledger.odd_feedback
