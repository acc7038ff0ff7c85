"""A request topic deleted and created again: at a quiet moment, since what is deleted unanswered is nobody's loss but the deleter's."""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from benchmarks.faults.load import Load
from benchmarks.faults.monitor import wait_caught_up
from benchmarks.faults.rows import MODEL, PARTITIONS
from benchmarks.faults.world import World
from runtime.kafka import admin, create_topics, topic_ids
from schemas.topics import REQUESTS

DEADLINE_SEC: Final = 120.0
STEP_SEC: Final = 0.1


def recreate(world: World, load: Load) -> None:
    """Pause the load, wait until all of it is answered and inserted, delete the topic, create it, and go on.

    Raises:
        TimeoutError: a step was not done in time.
    """
    load.pause()
    try:
        wait_caught_up(world.settings, ("gateway", "sink", "labels"), DEADLINE_SEC)
        old = world.request_topic_id()
    except BaseException:
        load.resume()
        raise
    try:
        load.resume(_anew(admin(world.settings), REQUESTS.for_model(MODEL), old))
    except BaseException as error:
        load.give_up(error)
        raise


def _anew(client: AdminClient, topic: str, old: uuid.UUID) -> uuid.UUID:
    """Delete the topic and create it; its new id, once it is told."""
    client.delete_topics([topic], operation_timeout=30)[topic].result()
    deadline = time.monotonic() + DEADLINE_SEC
    while time.monotonic() < deadline:
        with suppress(KafkaException):  # still being deleted
            create_topics(client, [(topic, REQUESTS, PARTITIONS)])
        # A broker that has just been told to create a topic may not know it yet.
        new = topic_ids(client, [topic]).get(topic, old)
        if new != old:
            return new
        time.sleep(STEP_SEC)
    raise TimeoutError(f"{topic} was not deleted and created within {DEADLINE_SEC:.0f} s")
