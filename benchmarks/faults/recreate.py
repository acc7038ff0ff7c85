"""A request topic deleted and created again: at a quiet moment, since what is deleted unanswered is nobody's loss but the deleter's."""

from __future__ import annotations

import time
from typing import Final

from confluent_kafka import KafkaException

from benchmarks.faults.load import Load
from benchmarks.faults.monitor import wait_caught_up
from benchmarks.faults.rows import MODEL, PARTITIONS
from benchmarks.faults.world import World
from runtime.kafka import admin, create_topics
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
        client = admin(world.settings)
        topic = REQUESTS.for_model(MODEL)
        client.delete_topics([topic], operation_timeout=30)[topic].result()
        deadline = time.monotonic() + DEADLINE_SEC
        while True:
            try:
                if create_topics(client, [(topic, REQUESTS, PARTITIONS)]):
                    break
            except KafkaException:  # still being deleted
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic} was not created within {DEADLINE_SEC:.0f} s")
            time.sleep(STEP_SEC)
        new = world.request_topic_id()
        if new == old:
            raise TimeoutError(f"{topic} was not deleted within {DEADLINE_SEC:.0f} s")
    except BaseException:
        load.resume()
        raise
    load.resume(new)
