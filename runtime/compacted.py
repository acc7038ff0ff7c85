"""Reading a compacted topic: whole before anything is decided, then what changes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from runtime.kafka import REQUEST_TIMEOUT_SEC, consumer
from runtime.settings import Settings
from schemas.errors import Outage

_BATCH: Final = 1000


class CompactedTopic:
    """A compacted topic's newest committed value by key. Belongs to no group, commits nothing.

    `CompactedTopic(...)` returns when the topic was read to its end, so that nobody decides on half a table; `refresh` applies what came
    since, `read_to_end` everything that was committed before the call.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        partitions: Iterable[int] | None = None,
        timeout_sec: float = 30.0,
    ) -> None:
        self.values: dict[bytes, bytes] = {}
        self._topic = topic
        # End-of-partition events tell how far a reader of committed records has come: behind the last record may stand
        # transaction markers, which move the end but are never delivered.
        overrides: dict[str, Any] = {"enable.partition.eof": True, "fetch.wait.max.ms": 50}
        self._consumer: Consumer = consumer(settings, f"compacted-{uuid.uuid4()}", **overrides)
        try:
            if partitions is None:
                metadata = self._consumer.list_topics(topic, timeout=REQUEST_TIMEOUT_SEC).topics[topic]
                partitions = list(metadata.partitions)
            self._next = dict.fromkeys(partitions, 0)
            self._consumer.assign([TopicPartition(topic, p, 0) for p in self._next])
            self.read_to_end(timeout_sec)
        except BaseException:
            self._consumer.close()
            raise

    def read_to_end(self, timeout_sec: float = 30.0) -> list[bytes]:
        """Apply everything that was committed before this call; return the keys that changed, oldest first.

        Raises:
            Outage: the end was not reached in time.
        """
        deadline = time.monotonic() + timeout_sec
        ends = {}
        for partition in self._next:
            place = TopicPartition(self._topic, partition)
            try:
                _, ends[partition] = self._consumer.get_watermark_offsets(place, timeout=timeout_sec)
            except KafkaException as error:
                raise Outage(f"topic {self._topic}: {error.args[0].str()}") from error
        changed = []
        while any(self._next[partition] < end for partition, end in ends.items()):
            if time.monotonic() > deadline:
                raise Outage(f"topic {self._topic}: not read to its end within {timeout_sec:.0f} s")
            changed += self.refresh(0.2)
        return changed

    def refresh(self, timeout_sec: float = 0.0) -> list[bytes]:
        """Apply what was committed since; return the keys that changed, oldest first. Waits up to `timeout_sec` for the first."""
        changed = []
        first = self._consumer.consume(1, timeout_sec)
        for message in [*first, *(self._consumer.consume(_BATCH, 0) if first else [])]:
            error, partition, offset = message.error(), message.partition() or 0, message.offset() or 0
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    self._next[partition] = max(self._next[partition], offset)
                elif error.fatal() or not error.retriable():
                    raise KafkaException(error)
                continue
            self._next[partition] = offset + 1
            key, value = message.key() or b"", message.value()
            if value is None:
                self.values.pop(bytes(key), None)
            else:
                self.values[bytes(key)] = bytes(value)
            changed.append(bytes(key))
        return changed

    def close(self) -> None:
        """Let go."""
        self._consumer.close()
