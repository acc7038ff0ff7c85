"""Reading a compacted topic: whole before anything is decided, then what changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from confluent_kafka import Message

from runtime.reader import TopicReader
from runtime.settings import Settings

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
        """Read it to its end; `partitions` are all of them by default.

        Raises:
            Outage: Kafka does not answer, or has no such topic.
        """
        self.values: dict[bytes, bytes] = {}
        self._reader = TopicReader(settings, "compacted", **{"fetch.wait.max.ms": 50})
        try:
            places = (
                self._reader.places(topic) if partitions is None else [(topic, each) for each in partitions]
            )
            self._reader.begin(dict.fromkeys(places, 0))
            self.read_to_end(timeout_sec)
        except BaseException:
            self._reader.close()
            raise

    def read_to_end(self, timeout_sec: float = 30.0) -> list[bytes]:
        """Apply everything that was committed before this call; return the keys that changed, oldest first.

        Raises:
            Outage: nothing came for this time, and not the end either.
        """
        ends = {place: bounds.end for place, bounds in self._reader.bounds(self._reader.positions).items()}
        return [self._apply(message) for message in self._reader.read_to(ends, timeout_sec)]

    def refresh(self, timeout_sec: float = 0.0) -> list[bytes]:
        """Apply what was committed since; return the keys that changed, oldest first. Waits up to `timeout_sec` for the first."""
        return [self._apply(message) for message in self._reader.take(_BATCH, timeout_sec)]

    def close(self) -> None:
        """Let go."""
        self._reader.close()

    def _apply(self, message: Message) -> bytes:
        key, value = message.key() or b"", message.value()
        if value is None:
            self.values.pop(bytes(key), None)
        else:
            self.values[bytes(key)] = bytes(value)
        return bytes(key)
