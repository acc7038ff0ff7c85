"""Records that Kafka does not have when they are to be read: dropped by retention before that, or lost with the end of a log.

There is nothing to handle and nobody else who would tell, so whoever meets a gap raises an alert, and only then goes on behind it. It meets
one as an error because its consumer never resets an offset by itself (`auto.offset.reset = error`).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from runtime.kafka import REQUEST_TIMEOUT_SEC
from runtime.positions import Place
from schemas.errors import Outage
from schemas.events import Alert
from schemas.identity import name_id

log = logging.getLogger(__name__)

CUT_AFTER_SEC: Final = 30.0
"""A broker that has just come back may for a moment show less than it has: before that nobody believes that a log was cut."""


class Gap(NamedTuple):
    """Offsets `first` to `end - 1` of a partition are missing."""

    place: Place
    first: int
    end: int
    cut: bool
    """The log ends at `first` though it was read up to `end`: nothing lies behind the gap yet. Otherwise it begins at `end`."""

    def __str__(self) -> str:
        where = f"{self.place[0]}:{self.place[1]}"
        if self.cut:
            return f"{where}: Kafka's log ends at offset {self.first}, though it was read up to {self.end}: what lay between is lost"
        return f"{where}: Kafka dropped the offsets {self.first} to {self.end - 1} before they were read"


def gap_at(client: Consumer, place: Place, position: int) -> Gap | None:
    """What is missing where `client` is to read on at `position`; None if nothing is.

    Raises:
        KafkaException, Outage: Kafka does not tell.
    """
    marks = client.get_watermark_offsets(TopicPartition(*place), timeout=REQUEST_TIMEOUT_SEC)
    if marks is None:
        raise Outage(f"Kafka: no bounds of {place[0]}:{place[1]}")
    first, end = marks
    if position < first:
        return Gap(place, position, first, cut=False)
    return Gap(place, end, position, cut=True) if position > end else None


def missing_alert(gap: Gap, stage: str, model: str, topic_id: uuid.UUID, now_ms: int) -> Alert:
    """Deterministic in its id: whoever meets the same gap says the same."""
    return Alert(
        event_id=str(name_id("records missing", stage, topic_id, gap.place[1], gap.end)),
        model=model,
        at_ms=now_ms,
        kind="records_missing",
        severity="severe",
        subject=f"{gap.place[0]}:{gap.place[1]}",
        version="",
        message=f"{stage}: {gap}",
        evidence={
            "stage": stage,
            "topic_id": str(topic_id),
            "first_offset": gap.first,
            "end_offset": gap.end,
            "cause": "log cut" if gap.cut else "retention",
        },
    )


class Stranded:
    """The partitions where a consumer has met a gap: librdkafka reads no further there until it is assigned anew. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since_sec: dict[Place, float] = {}

    def __bool__(self) -> bool:
        return bool(self._since_sec)

    def __contains__(self, place: object) -> bool:
        return place in self._since_sec

    def take(self, message: Message) -> bool:
        """Whether a polled error means that there is a gap; then its partition is stranded from now on."""
        topic, partition, error = message.topic(), message.partition(), message.error()
        if (
            error is None
            or error.code() != KafkaError._AUTO_OFFSET_RESET
            or topic is None
            or partition is None
        ):
            return False
        log.warning("%s:%d: %s", topic, partition, error.str())
        self._since_sec.setdefault((topic, partition), self._clock())
        return True

    def forget(self, *places: Place) -> None:
        """They were assigned anew."""
        for place in places:
            self._since_sec.pop(place, None)

    def clear(self) -> None:
        """Nothing is assigned any more, or everything anew."""
        self._since_sec.clear()

    def gaps(self, client: Consumer, positions: Mapping[Place, int]) -> list[tuple[Place, Gap | None]]:
        """What is missing of each where it is to be read on; None where nothing is (any more). One that has no position is forgotten, and a
        log that seems cut is left out until nobody doubts it.

        Raises:
            KafkaException, Outage: Kafka does not tell; to be called again.
        """
        self.forget(*(self._since_sec.keys() - positions.keys()))
        found = [(place, gap_at(client, place, positions[place])) for place in self._since_sec]
        doubtful_sec = self._clock() - CUT_AFTER_SEC
        return [
            (place, gap)
            for place, gap in found
            if gap is None or not gap.cut or self._since_sec[place] <= doubtful_sec
        ]
