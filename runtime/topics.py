"""What topics there are: for a service that begins, which waits until Kafka has them, and for one at work."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from runtime.kafka import REQUEST_TIMEOUT_SEC, admin, topic_ids
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
    """Asks again and again, by a client that is replaced when it fails: one that saw the broker go, or began before it, may look for the controller for
    ever."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: AdminClient | None = None

    def ids(self, names: Iterable[str]) -> dict[str, uuid.UUID]:
        """As `topic_ids`.

        Raises:
            Outage: the broker did not answer.
        """
        with self._asking() as client:
            return topic_ids(client, names)

    def places(self) -> set[Place]:
        """Every partition of every topic.

        Raises:
            Outage: the broker did not answer.
        """
        with self._asking() as client:
            topics = client.list_topics(timeout=REQUEST_TIMEOUT_SEC).topics
        return {(name, number) for name, metadata in topics.items() for number in metadata.partitions}

    @contextmanager
    def _asking(self) -> Iterator[AdminClient]:
        client = self._client = self._client or admin(self._settings)
        try:
            yield client
        except (KafkaException, Outage) as error:
            self._client = None
            if isinstance(error, Outage):
                raise
            raise Outage(f"Kafka does not tell its topics: {error.args[0].str()}") from error
