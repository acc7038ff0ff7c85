"""Reading topics from a place on, or to where they end now: committed records only, in no group that anybody looks at."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from runtime.kafka import REQUEST_TIMEOUT_SEC, consumer, judge
from runtime.positions import Ends, Place
from runtime.settings import Settings
from schemas.errors import Outage

PATIENCE_SEC: Final = 60.0
_BATCH: Final = 1000
_WAIT_SEC: Final = 0.1


class Bounds(NamedTuple):
    """What Kafka has of a partition."""

    first: int
    end: int
    """Offset after the last record that is decided: committed or aborted."""


class TopicReader:
    """A consumer by assignment that commits nothing and knows how far it has read. Not thread-safe."""

    def __init__(self, settings: Settings, name: str, **overrides: Any) -> None:
        """`name` is for logs."""
        self._name = name
        # The end of a partition may be the marker of a transaction, which is never delivered.
        options: dict[str, Any] = {"enable.partition.eof": True, **overrides}
        self._client: Consumer = consumer(settings, f"{name}-{uuid.uuid4()}", **options)
        self.positions: dict[Place, int] = {}
        """Offset up to which each partition was read, transaction markers included."""

    def places(self, topic: str) -> list[Place]:
        """The topic's partitions.

        Raises:
            Outage: Kafka does not answer, or has no such topic.
        """
        try:
            metadata = self._client.list_topics(topic, timeout=REQUEST_TIMEOUT_SEC).topics[topic]
        except KafkaException as error:
            raise Outage(f"Kafka: {topic}: {error.args[0].str()}") from error
        if metadata.error is not None:
            raise Outage(f"Kafka: {topic}: {metadata.error.str()}")
        return [(topic, partition) for partition in sorted(metadata.partitions)]

    def bounds(self, places: Iterable[Place]) -> dict[Place, Bounds]:
        """What there is of `places` now.

        Raises:
            Outage: Kafka does not answer.
        """
        found = {}
        for place in places:
            try:
                marks = self._client.get_watermark_offsets(
                    TopicPartition(*place), timeout=REQUEST_TIMEOUT_SEC
                )
            except KafkaException as error:
                raise Outage(f"Kafka: {place[0]}:{place[1]}: {error.args[0].str()}") from error
            if marks is None:
                raise Outage(f"Kafka: no bounds of {place[0]}:{place[1]}")
            found[place] = Bounds(*marks)
        return found

    def begin(self, starts: Mapping[Place, int]) -> None:
        """Read these partitions from these offsets on, and no others."""
        self.positions = dict(starts)
        if starts:
            self._client.assign([TopicPartition(*place, offset) for place, offset in starts.items()])
        else:
            self._client.unassign()

    def take(self, limit: int, timeout_sec: float = 0.0) -> list[Message]:
        """At most `limit` of the records that are there; waits up to `timeout_sec` for the first, and for no second.

        Raises:
            KafkaException: this client will not come further.
        """
        first = self._client.consume(1, timeout_sec)
        found = []
        for message in [*first, *(self._client.consume(limit - 1, 0.0) if first and limit > 1 else ())]:
            error, offset = message.error(), message.offset() or 0
            place = (message.topic() or "", message.partition() or 0)
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                judge(error, self._name)
            elif place not in self.positions:
                continue  # what was read before this, told late
            elif error is None:
                self.positions[place] = offset + 1
                found.append(message)
            else:
                self.positions[place] = max(offset, self.positions[place])
        return found

    def behind(self, ends: Ends) -> list[Place]:
        """Those of `ends` to which it has not come."""
        return [place for place, end in ends.items() if self.positions[place] < end]

    def read_to(self, ends: Ends, patience_sec: float = PATIENCE_SEC) -> Iterator[Message]:
        """Records until all below `ends` were read, each partition's in order. What follows an end may come too.

        Raises:
            Outage: none of those that are behind moved for `patience_sec`.
        """
        moved_sec = time.monotonic()
        while behind := self.behind(ends):
            before = [self.positions[place] for place in behind]
            yield from self.take(_BATCH, _WAIT_SEC)
            if before != [self.positions[place] for place in behind]:
                moved_sec = time.monotonic()
            elif time.monotonic() > moved_sec + patience_sec:
                names = ", ".join(f"{topic}:{partition}" for topic, partition in behind)
                raise Outage(f"Kafka: {names}: not read to the end, nothing came for {patience_sec:.0f} s")

    def whole(self, places: Iterable[Place]) -> Iterator[Message]:
        """All that is committed of `places`, up to where each ends now.

        Raises:
            Outage: as `bounds` and `read_to`.
        """
        bounds = self.bounds(places)
        ends = {place: found.end for place, found in bounds.items()}
        self.begin({place: found.first for place, found in bounds.items()})
        for message in self.read_to(ends):
            if (message.offset() or 0) < ends[message.topic() or "", message.partition() or 0]:
                yield message
        self.begin({})

    def close(self) -> None:
        """Let go."""
        self._client.close()
