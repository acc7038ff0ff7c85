"""Where a group stands: its committed offsets, and when "none" may be believed."""

from __future__ import annotations

import time
from typing import Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from runtime.kafka import REQUEST_TIMEOUT_SEC

CONFIRM_SEC: Final = 10.0
"""So long a group that is said to have committed nothing at all is asked again: reading its offsets takes a broker seconds."""
RETRY_SEC: Final = 0.5


def told(client: Consumer, places: list[TopicPartition]) -> list[TopicPartition]:
    """The committed offsets of the group that `client` was made for, as the broker tells them now; negative where there is none.

    Raises:
        KafkaException: it does not tell.
    """
    found = client.committed(places, timeout=REQUEST_TIMEOUT_SEC)
    for place in found:
        if place.error is not None:
            raise KafkaException(place.error)
    return found


def committed(client: Consumer, places: list[TopicPartition]) -> list[TopicPartition]:
    """As `told`, for whoever begins where the group stands.

    Who believes that nothing was committed handles everything once more, and a broker that has just started may say so of any group: it may
    serve a group before it has read the group's offsets (docs/decisions/0004). So "none" of a partition that has records is believed if
    the broker knows other offsets of the group, or has said so for `CONFIRM_SEC`. The latter happens once in a group's life.

    Raises:
        KafkaException: the broker does not tell.
    """
    asked_sec = time.monotonic()
    while True:
        found = told(client, places)
        if not any(_has_records(client, place) for place in found if place.offset < 0):
            return found
        if _knows_group(client):
            found = told(client, places)
            # It may have been started anew in between.
            if _knows_group(client):
                return found
        elif time.monotonic() >= asked_sec + CONFIRM_SEC:
            return found
        time.sleep(RETRY_SEC)


def or_start(client: Consumer, places: list[TopicPartition]) -> list[TopicPartition]:
    """`places`, those without an offset at their low watermark.

    Raises:
        KafkaException: the broker does not tell.
    """
    return [
        place
        if place.offset >= 0
        else TopicPartition(place.topic, place.partition, _watermarks(client, place)[0])
        for place in places
    ]


def _has_records(client: Consumer, place: TopicPartition) -> bool:
    low, high = _watermarks(client, place)
    return high > low


def _watermarks(client: Consumer, place: TopicPartition) -> tuple[int, int]:
    bounds: tuple[int, int] = client.get_watermark_offsets(
        TopicPartition(place.topic, place.partition), timeout=REQUEST_TIMEOUT_SEC
    )
    return bounds


def _knows_group(client: Consumer) -> bool:
    """Whether the broker knows any offset of the group that `client` was made for."""
    topics = client.list_topics(timeout=REQUEST_TIMEOUT_SEC).topics
    everything = [
        TopicPartition(name, number) for name, topic in topics.items() for number in topic.partitions
    ]
    return any(place.offset >= 0 for place in told(client, everything))
