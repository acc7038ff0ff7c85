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

    `CompactedTopic(...)` returns when the topic was read to the end it had at the start, so that nobody decides on half a
    table; `refresh` applies what came since.
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
        # EOF events tell the end as a reader of committed records sees it: an open transaction holds the last stable offset back.
        overrides: dict[str, Any] = {"enable.partition.eof": True, "fetch.wait.max.ms": 10}
        self._consumer: Consumer = consumer(settings, f"compacted-{uuid.uuid4()}", **overrides)
        if partitions is None:
            metadata = self._consumer.list_topics(topic, timeout=REQUEST_TIMEOUT_SEC).topics[topic]
            partitions = list(metadata.partitions)
        self._unread = set(partitions)
        self._consumer.assign([TopicPartition(topic, p, 0) for p in self._unread])
        deadline = time.monotonic() + timeout_sec
        while self._unread:
            self.refresh(0.2)
            if self._unread and time.monotonic() > deadline:
                self._consumer.close()
                raise Outage(f"topic {topic}: not read to its end within {timeout_sec:.0f} s")

    def refresh(self, timeout_sec: float = 0.0) -> list[bytes]:
        """Apply what was committed since; return the keys that changed, oldest first. Waits up to `timeout_sec` for the first."""
        changed = []
        for message in self._consumer.consume(_BATCH, timeout_sec):
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    self._unread.discard(message.partition() or 0)
                elif error.fatal() or not error.retriable():
                    raise KafkaException(error)
                continue
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
