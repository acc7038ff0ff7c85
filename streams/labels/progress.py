"""How far the sink has brought a topic into ClickHouse.

The offsets that group `sink` has committed confirm everything below them (`docs/delivery.md`). They stop short of a topic's end where
only transaction markers and aborted records follow; whether anything readable follows is tried with a read-committed consumer.

All of it is asked in a thread of its own, so that no join waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias, cast

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from runtime.kafka import REQUEST_TIMEOUT_SEC, admin, consumer
from runtime.settings import Settings
from schemas.errors import Outage

log = logging.getLogger(__name__)

SINK_GROUP: Final = "sink"
ASK_EVERY_SEC: Final = 0.1
_PROBE_SEC: Final = 1.0

_LATEST: Final = cast(Callable[[], OffsetSpec], OffsetSpec.latest)()

Place: TypeAlias = tuple[str, int]
"""Topic and partition."""
Ends: TypeAlias = Mapping[Place, int]
"""Offset after the last record by topic and partition."""


class EndOffsets:
    """The ends of topics, open transactions and markers included."""

    def __init__(self, settings: Settings) -> None:
        self._admin: AdminClient = admin(settings)
        self._partitions: dict[str, int] = {}

    def of(self, topics: Iterable[str], *, stable: bool = False) -> dict[Place, int]:
        """The end offset of every partition of `topics`; with `stable`, where the oldest open transaction begins if there is one.

        Raises:
            Outage: the broker does not answer.
        """
        try:
            places = [TopicPartition(topic, p) for topic in topics for p in range(self._count(topic))]
            isolation = IsolationLevel.READ_COMMITTED if stable else IsolationLevel.READ_UNCOMMITTED
            futures = self._admin.list_offsets(
                dict.fromkeys(places, _LATEST),
                isolation_level=isolation,
                request_timeout=REQUEST_TIMEOUT_SEC,
            )
            return {
                (place.topic, place.partition): future.result().offset for place, future in futures.items()
            }
        except KafkaException as error:
            raise Outage(f"Kafka does not tell the ends of {', '.join(topics)}: {error}") from error

    def _count(self, topic: str) -> int:
        if topic not in self._partitions:
            metadata = self._admin.list_topics(topic, timeout=REQUEST_TIMEOUT_SEC).topics[topic]
            if metadata.error is not None:
                raise Outage(f"topic {topic}: {metadata.error}")
            self._partitions[topic] = len(metadata.partitions)
        return self._partitions[topic]


class SinkProgress(threading.Thread):
    """Follows what the sink has confirmed of `topics`; `passed` may be asked from any thread."""

    def __init__(self, settings: Settings, topics: tuple[str, ...]) -> None:
        super().__init__(name="sink-progress", daemon=True)
        self._topics = topics
        self._ends = EndOffsets(settings)
        # Only asks for the group's offsets: it never subscribes, so it is no member.
        self._group: Consumer = consumer(settings, SINK_GROUP)
        probing: dict[str, Any] = {
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
            "fetch.message.max.bytes": 1024,
        }
        self._prober: Consumer = consumer(settings, f"probe-{uuid.uuid4()}", **probing)
        self._confirmed: dict[Place, int] = {}
        self._ended = threading.Event()

    def passed(self, ends: Ends) -> bool:
        """Whether everything readable below `ends` is in ClickHouse."""
        confirmed = self._confirmed
        return all(confirmed.get(place, -1) >= end for place, end in ends.items())

    def run(self) -> None:
        last: dict[Place, int] = {}
        while not self._ended.wait(ASK_EVERY_SEC):
            try:
                ends = self._ends.of(self._topics)
                committed = self._committed(list(ends))
                confirmed = dict(self._confirmed)
                for place, offset in committed.items():
                    confirmed[place] = max(offset, confirmed.get(place, 0))
                    # A sink at work tells by its commits; only one that stands still may stand before mere markers.
                    if confirmed[place] < ends[place] and last.get(place) == offset:
                        confirmed[place] = self._next_readable(place, confirmed[place])
                self._confirmed, last = confirmed, committed
            except (KafkaException, Outage) as error:
                log.warning("cannot tell the sink's progress: %s", error)
        self._group.close()
        self._prober.close()

    def end(self) -> None:
        """End the thread and wait for it."""
        self._ended.set()
        if self.is_alive():
            self.join()

    def _committed(self, places: list[Place]) -> dict[Place, int]:
        found = {}
        for place in self._group.committed(
            [TopicPartition(*place) for place in places], timeout=REQUEST_TIMEOUT_SEC
        ):
            if place.error is not None:
                raise KafkaException(place.error)
            found[place.topic, place.partition] = max(place.offset, 0)
        return found

    def _next_readable(self, place: Place, offset: int) -> int:
        """`offset` if a committed record stands at or after it; else the end as a read-committed reader sees it."""
        self._prober.assign([TopicPartition(*place, offset)])
        deadline = time.monotonic() + _PROBE_SEC
        try:
            while (left_sec := deadline - time.monotonic()) > 0:
                message = self._prober.poll(left_sec)
                # The end of the partition that was probed before may still be in the queue.
                if message is None or (message.topic(), message.partition()) != place:
                    continue
                error = message.error()
                if error is None:
                    return offset
                if error.code() == KafkaError._PARTITION_EOF:
                    return max(message.offset() or 0, offset)
                raise KafkaException(error)
            return offset
        finally:
            self._prober.unassign()
