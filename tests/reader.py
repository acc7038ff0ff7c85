"""Committed records of a topic, as a consumer sees them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from runtime.kafka import REQUEST_TIMEOUT_SEC, consumer
from runtime.settings import Settings
from tests.waiting import WITHIN_SEC

POLL_SEC: Final = 0.1


class Reader:
    """A topic's committed records: from its end as it was when the reader was made, or `from_start`. `spying` reads the others too."""

    def __init__(
        self, settings: Settings, topic: str, *, from_start: bool = False, spying: bool = False
    ) -> None:
        overrides: dict[str, Any] = {
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,  # the end behind a transaction's marker is told by a fetch that finds nothing
            "isolation.level": "read_uncommitted" if spying else "read_committed",
        }
        self._client: Consumer = consumer(settings, f"test-{uuid.uuid4()}", **overrides)
        self._topic = topic
        self._next: dict[int, int] = {}
        for partition in (
            self._client.list_topics(topic, timeout=REQUEST_TIMEOUT_SEC).topics[topic].partitions
        ):
            self._next[partition] = self._bounds(partition)[0 if from_start else 1]
        self._client.assign([TopicPartition(topic, *place) for place in self._next.items()])
        self.messages: list[Message] = []
        """All so far, each partition's in its order."""
        self._awaited: int | None = None

    def read(self) -> list[Message]:
        """All records that were committed before the call, and perhaps some more."""
        ends = {partition: self._bounds(partition)[1] for partition in self._next}
        return self.wait(
            lambda _: all(self._next[partition] >= end for partition, end in ends.items()), f"offsets {ends}"
        )

    def wait(
        self, condition: Callable[[list[Message]], Any], what: str, within_sec: float = WITHIN_SEC
    ) -> list[Message]:
        """Read on until `condition` holds of all records."""
        deadline = time.monotonic() + within_sec
        while not condition(self.messages):
            assert time.monotonic() < deadline, (
                f"not within {within_sec:.0f} s: {what} in {self._topic}; {len(self.messages)} records, at {self._next}"
            )
            self._poll()
        return self.messages

    def until(self, count: int) -> list[Message]:
        """Wait for `count` records in all; fails if more are there, now or at `expect_no_more`."""
        self.wait(lambda found: len(found) >= count, f"{count} records")
        self._awaited = count
        self.expect_no_more()
        return self.messages

    def expect_no_more(self) -> None:
        """Fails if records have come since the last `until`; nothing, if there was none."""
        assert self._awaited is None or len(self.read()) == self._awaited

    def close(self) -> None:
        self._client.close()

    def _poll(self) -> None:
        """Take what is there; if there is nothing, what comes within a moment."""
        message = self._client.poll(POLL_SEC)
        while message is not None:
            error, partition, offset = message.error(), message.partition() or 0, message.offset() or 0
            if error is None:
                self.messages.append(message)
                self._next[partition] = offset + 1
            else:
                assert error.code() == KafkaError._PARTITION_EOF, error
                self._next[partition] = offset  # behind a transaction's marker, which is no record
            message = self._client.poll(0)

    def _bounds(self, partition: int) -> tuple[int, int]:
        """First and next offset of the partition; what an open transaction holds up is behind it."""
        found = self._client.get_watermark_offsets(
            TopicPartition(self._topic, partition), timeout=REQUEST_TIMEOUT_SEC
        )
        assert found is not None
        return found


def written(settings: Settings, topic: str) -> list[Message]:
    """Everything that is committed in a topic now."""
    reader = Reader(settings, topic, from_start=True)
    try:
        return reader.read()
    finally:
        reader.close()
