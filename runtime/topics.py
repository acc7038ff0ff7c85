"""What a service waits for before it begins: that Kafka answers, and has the topics."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Final

from runtime.kafka import admin, topic_ids
from runtime.service import Health, Stop
from runtime.settings import Settings
from schemas.errors import Outage

RETRY_SEC: Final = 0.5


def existing_topics(
    settings: Settings, names: Collection[str], health: Health, stop: Stop, *, every: bool = True
) -> dict[str, uuid.UUID] | None:
    """As `topic_ids`, once Kafka answers and, if `every`, has all of them; None if the service is stopped before.

    A service that begins while the broker does waits: to die and be started again costs seconds of the processor, at the very moment when
    everything else catches up.
    """
    while not stop.is_set():
        try:
            # Another client each time: one that began before the broker did may go on asking for its controller.
            found = topic_ids(admin(settings), names)
        except Outage as error:
            health.error(str(error))
        else:
            missing = sorted(set(names) - found.keys())
            if not (every and missing):
                return found
            health.error(f"Kafka has no topic {', '.join(missing)} (yet)")
        stop.wait(RETRY_SEC)
    return None
