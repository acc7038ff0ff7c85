"""Waiting until what had been produced before a moment has gone through every stage into ClickHouse."""

from __future__ import annotations

import time
import uuid
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from runtime.kafka import REQUEST_TIMEOUT_SEC, consumer
from runtime.positions import PROBING, EndOffsets, Ends, next_record
from runtime.settings import Settings
from schemas.errors import Outage
from schemas.spec import load_specs
from schemas.topics import (
    DEAD_LETTERS,
    FEEDBACK,
    FEEDBACK_REDRIVES,
    OBSERVATIONS,
    OUTCOMES,
    REDRIVES,
    REQUESTS,
)

POLL_SEC: Final = 0.1


def settle(settings: Settings, wait_sec: float) -> list[str]:
    """Wait up to `wait_sec`; return a line for each stage that had not caught up then, none if all is in ClickHouse.

    First gateway and labels pass what requests and feedback hold now, then the sink what came of it.
    """
    deadline = time.monotonic() + wait_sec
    models = list(load_specs(settings.models_dir))
    ends = EndOffsets(settings)
    reader = consumer(settings, f"backup-ends-{uuid.uuid4()}", **PROBING)
    late = []
    try:
        requests = ends.of(
            [topic.for_model(model) for topic in (REQUESTS, REDRIVES) for model in models], stable=True
        )
        feedback = ends.of(
            [topic.for_model(model) for topic in (FEEDBACK, FEEDBACK_REDRIVES) for model in models],
            stable=True,
        )
        late += _passed(settings, reader, "gateway", requests, deadline)
        late += _passed(settings, reader, "labels", feedback, deadline)
        rows = ends.of([OBSERVATIONS.name, OUTCOMES.name, DEAD_LETTERS.name], stable=True)
        late += _passed(settings, reader, "sink", rows | feedback, deadline)
    except KafkaException as error:
        raise Outage(f"Kafka: {error.args[0].str()}") from error
    finally:
        reader.close()
    return late


def _passed(settings: Settings, reader: Consumer, group: str, ends: Ends, deadline: float) -> list[str]:
    """Where the group has not come to `ends` at the deadline. It is asked, never joined."""
    if not ends:
        return []
    member = consumer(settings, group)
    try:
        while True:
            found = member.committed([TopicPartition(*place) for place in ends], timeout=REQUEST_TIMEOUT_SEC)
            behind = [
                f"{group} is at {max(place.offset, 0)} of {end} in {place.topic}:{place.partition}"
                for place in found
                if max(place.offset, 0) < (end := ends[place.topic, place.partition])
                and _readable(reader, place, end)
            ]
            if not behind or time.monotonic() >= deadline:
                return behind
            time.sleep(POLL_SEC)
    finally:
        member.close()


def _readable(reader: Consumer, place: TopicPartition, end: int) -> bool:
    """Whether a record stands between the group's place and `end`: there may be nothing but transaction markers."""
    begin = place.offset if place.offset >= 0 else OFFSET_BEGINNING
    try:
        found = next_record(reader, (place.topic, place.partition), begin, within_sec=REQUEST_TIMEOUT_SEC)
    except Outage:
        return True
    return not isinstance(found, int) and (found.offset() or 0) < end
