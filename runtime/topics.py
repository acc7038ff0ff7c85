"""What topics there are: for a service that begins, which waits until Kafka has them, and for one at work."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from typing import Final

from runtime.kafka import REQUEST_TIMEOUT_SEC, LastingAdmin, topic_ids
from runtime.positions import Place
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
    catalogue = Topics(settings)
    while not stop.is_set():
        try:
            found = catalogue.ids(names)
        except Outage as error:
            health.error(str(error))
        else:
            missing = sorted(set(names) - found.keys())
            if not (every and missing):
                return found
            health.error(f"Kafka has no topic {', '.join(missing)} (yet)")
        stop.wait(RETRY_SEC)
    return None


class Topics:
    """Asks again and again which topics there are. Threads may share it."""

    def __init__(self, settings: Settings) -> None:
        self._admin = LastingAdmin(settings)

    def ids(self, names: Iterable[str]) -> dict[str, uuid.UUID]:
        """As `topic_ids`.

        Raises:
            Outage: the broker did not answer.
        """
        with self._admin.asking("its topics") as client:
            return topic_ids(client, names)

    def places(self) -> set[Place]:
        """Every partition of every topic.

        Raises:
            Outage: the broker did not answer.
        """
        with self._admin.asking("its topics") as client:
            topics = client.list_topics(timeout=REQUEST_TIMEOUT_SEC).topics
        return {(name, number) for name, metadata in topics.items() for number in metadata.partitions}
