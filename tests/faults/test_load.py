"""What the load knows of where its records lie is all that the account believes."""

from __future__ import annotations

from confluent_kafka import Message

from benchmarks.faults.load import Acknowledged

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
