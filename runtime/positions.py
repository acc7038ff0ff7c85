"""Where topics end, and whether anything that can be read lies before an end.

On a topic that is written by transactions an offset says less than it seems to: the marker that ends a transaction has one and is never
delivered, and neither is an aborted record. So whoever has read all there is may stand below the end for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeAlias, cast

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from runtime.kafka import REQUEST_TIMEOUT_SEC, LastingAdmin, judge
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
_MARGIN_SEC: Final = 2.0
"""A request ends by itself before whoever waits for it gives up."""
_LATEST: Final = cast(Callable[[], OffsetSpec], OffsetSpec.latest)()


class EndOffsets:
    """Asks where topics end. Not thread-safe."""

    def __init__(self, settings: Settings, timeout_sec: float = REQUEST_TIMEOUT_SEC) -> None:
        self._admin, self._timeout_sec = LastingAdmin(settings), timeout_sec
        self._partitions: dict[str, int] = {}

    def of(self, topics: Iterable[str], *, stable: bool = False) -> dict[Place, int]:
        """The end offset of every partition of `topics`; with `stable`, where the oldest open transaction begins if there is one.

        Raises:
            Outage: the broker does not answer.
        """
        topics = list(topics)
        with self._asking(topics) as client:
            places = [(topic, p) for topic in topics for p in range(self._count(client, topic))]
            return self._listed(client, places, stable)

    def at(self, places: Collection[Place], *, stable: bool = False) -> dict[Place, int]:
        """As `of`, for some partitions."""
        with self._asking(sorted({topic for topic, _ in places})) as client:
            return self._listed(client, places, stable)

    @contextmanager
    def _asking(self, topics: Iterable[str]) -> Iterator[AdminClient]:
        try:
            with self._admin.asking(f"the ends of {', '.join(topics)}") as client:
                yield client
        except Outage:
            self._partitions.clear()
            raise

    def _count(self, client: AdminClient, topic: str) -> int:
        if topic not in self._partitions:
            metadata = client.list_topics(topic, timeout=self._timeout_sec).topics[topic]
            if metadata.error is not None:
                raise KafkaException(metadata.error)
            self._partitions[topic] = len(metadata.partitions)
        return self._partitions[topic]

    def _listed(self, client: AdminClient, places: Collection[Place], stable: bool) -> dict[Place, int]:
        if not places:
            return {}
        futures = client.list_offsets(
            {TopicPartition(*place): _LATEST for place in places},
            isolation_level=IsolationLevel.READ_COMMITTED if stable else IsolationLevel.READ_UNCOMMITTED,
            request_timeout=self._timeout_sec,
        )
        deadline = time.monotonic() + self._timeout_sec + _MARGIN_SEC
        return {
            (place.topic, place.partition): future.result(max(deadline - time.monotonic(), 0.0)).offset
            for place, future in futures.items()
        }


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
