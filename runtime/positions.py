"""Where topics end, and whether anything that can be read lies before an end.

On a topic that is written by transactions an offset says less than it seems to: the marker that ends a transaction has one and is never
delivered, and neither is an aborted record. So whoever has read all there is may stand below the end for ever.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from runtime.kafka import REQUEST_TIMEOUT_SEC, consumer, judge
from runtime.settings import Settings
from schemas.errors import Outage

Place: TypeAlias = tuple[str, int]
"""Topic and partition."""
Ends: TypeAlias = Mapping[Place, int]
"""Offset after the last record, by place."""

SINK_GROUP: Final = "sink"
"""Its committed offsets say what is in ClickHouse."""
PROBING: Final[dict[str, Any]] = {
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,
    "fetch.message.max.bytes": 1024,
}
"""Settings of a consumer that looks what is there (`next_record`)."""


class EndOffsets:
    """Asks where topics end. Not thread-safe.

    By consumers, though they consume nothing: librdkafka's admin client waits for a wake-up that may be lost, for 3 s, in one question of fifteen.
    """

    def __init__(self, settings: Settings, timeout_sec: float = REQUEST_TIMEOUT_SEC) -> None:
        self._settings, self._timeout_sec = settings, timeout_sec
        self._clients: dict[bool, Consumer] = {}
        """By whether they tell the stable end."""
        self._partitions: dict[str, int] = {}

    def of(self, topics: Iterable[str], *, stable: bool = False) -> dict[Place, int]:
        """The end offset of every partition of `topics`; with `stable`, where the oldest open transaction begins if there is one.

        Raises:
            Outage: the broker does not answer.
        """
        topics = list(topics)
        with self._asking(topics, stable) as client:
            places = [(topic, p) for topic in topics for p in range(self._count(client, topic))]
            return self._listed(client, places)

    def at(self, places: Collection[Place], *, stable: bool = False) -> dict[Place, int]:
        """As `of`, for some partitions."""
        with self._asking(sorted({topic for topic, _ in places}), stable) as client:
            return self._listed(client, places)

    @contextmanager
    def _asking(self, topics: Iterable[str], stable: bool) -> Iterator[Consumer]:
        """A client, which is replaced when it fails: it may hold to what has passed."""
        if stable not in self._clients:
            level = "read_committed" if stable else "read_uncommitted"
            self._clients[stable] = consumer(self._settings, "ends", **{"isolation.level": level})
        try:
            yield self._clients[stable]
        except KafkaException as error:
            self._partitions.clear()
            self._clients.pop(stable).close()
            raise Outage(
                f"Kafka does not tell the ends of {', '.join(topics)}: {error.args[0].str()}"
            ) from error

    def _count(self, client: Consumer, topic: str) -> int:
        if topic not in self._partitions:
            metadata = client.list_topics(topic, timeout=self._timeout_sec).topics[topic]
            if metadata.error is not None:
                raise KafkaException(metadata.error)
            self._partitions[topic] = len(metadata.partitions)
        return self._partitions[topic]

    def _listed(self, client: Consumer, places: Collection[Place]) -> dict[Place, int]:
        if not places:
            return {}
        asked = [TopicPartition(*place, OFFSET_END) for place in places]
        found = client.offsets_for_times(asked, timeout=self._timeout_sec)
        for place in found:
            if place.error is not None or place.offset < 0:
                raise KafkaException(place.error or KafkaError(KafkaError._NO_OFFSET))
        return {(place.topic, place.partition): place.offset for place in found}


def next_record(
    client: Consumer, place: Place, offset: int, *, within_sec: float, end: int = 0
) -> Message | int:
    """The first record at or after `offset` that `client` may read; if there is none, the offset at which the partition ends for it.

    `client` is made with `PROBING`, and nothing is assigned to it. An end below `end` is the answer to an earlier question.

    Raises:
        Outage: no answer in time.
        KafkaException: this client will give none.
    """
    deadline = time.monotonic() + within_sec
    client.assign([TopicPartition(*place, offset)])
    try:
        while (left_sec := deadline - time.monotonic()) > 0:
            message = client.poll(left_sec)
            if message is None:
                continue
            error, found = message.error(), message.offset() or 0
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                judge(error, "probe")
            elif (message.topic(), message.partition()) != place:
                continue  # of an earlier question, too
            elif error is None and found >= offset:
                return message
            elif error is not None and found >= end:
                return max(found, offset)
        raise Outage(f"Kafka does not tell what follows offset {offset} of {place[0]}:{place[1]}")
    finally:
        client.unassign()
