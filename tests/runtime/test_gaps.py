"""What Kafka does not have when it is to be read, on a real broker."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest

from compose.embedded.stack import Stack
from runtime.gaps import Gap, gap_at, missing_alert
from runtime.kafka import admin, consumer, create_topics, producer
from runtime.positions import Place
from runtime.settings import Settings
from schemas.topics import REQUESTS
from tests.retention import drop_before


@pytest.fixture(scope="module")
def settings(infrastructure: Stack) -> Settings:
    return infrastructure.settings


@pytest.fixture(scope="module")
def place(settings: Settings) -> Iterator[Place]:
    """A partition that has the offsets 4 to 9."""
    found = f"requests.{uuid.uuid4()}", 0
    client = admin(settings)
    create_topics(client, [(found[0], REQUESTS, 1)])
    writer = producer(settings)
    for number in range(10):
        writer.produce(found[0], b"%d" % number)
    assert writer.flush(10) == 0
    drop_before(settings, found, 4)
    yield found
    client.delete_topics([found[0]])[found[0]].result(10)


def test_a_gap_is_what_lies_between_a_position_and_what_there_is(settings: Settings, place: Place) -> None:
    with closing(consumer(settings, "gaps")) as client:
        assert gap_at(client, place, 1) == Gap(place, 1, 4, cut=False)
        assert [gap_at(client, place, position) for position in range(4, 11)] == [None] * 7
        assert gap_at(client, place, 12) == Gap(place, 10, 12, cut=True)


def test_an_alert_says_which_offsets_and_why_and_a_repeat_has_the_same_id() -> None:
    topic_id, place = uuid.uuid4(), ("requests.fraud", 3)
    dropped, cut = Gap(place, 1, 4, cut=False), Gap(place, 10, 12, cut=True)
    alert = missing_alert(dropped, "gateway", "fraud", topic_id, 5)
    assert (alert.kind, alert.severity, alert.subject) == ("records_missing", "severe", "requests.fraud:3")
    assert (
        alert.message == "gateway: requests.fraud:3: Kafka dropped the offsets 1 to 3 before they were read"
    )
    assert alert.evidence == {
        "stage": "gateway",
        "topic_id": str(topic_id),
        "first_offset": 1,
        "end_offset": 4,
        "cause": "retention",
    }
    assert missing_alert(dropped, "gateway", "fraud", topic_id, 9).event_id == alert.event_id
    other = missing_alert(cut, "gateway", "fraud", topic_id, 5)
    assert "ends at offset 10, though it was read up to 12" in other.message
    assert other.event_id != alert.event_id
    # Where a log was cut, its end moves on; what is missing at its old end stays the same.
    assert missing_alert(cut._replace(first=11), "gateway", "fraud", topic_id, 5).event_id == other.event_id
