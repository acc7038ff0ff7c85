"""Reads the end of `observations` into memory.

Every replica reads all of it: a label names nothing but an id, and which observations belong to one's own feedback partitions cannot be
told from them. A row costs about half a microsecond, and its features are not kept.
"""

from __future__ import annotations

import uuid
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from runtime.kafka import consumer, gather
from runtime.settings import Settings
from schemas.arrow import decode_batch
from streams.labels.observed import Names, Observed
from streams.labels.progress import Ends, Place

_RECORDS: Final = 200
"""At most so many in one read, so that a backlog holds up no label."""
_QUEUE_KB: Final = 16 * 1024


class Watch:
    """A consumer by assignment, in a group of its own that commits nothing."""

    def __init__(self, settings: Settings) -> None:
        self.observed = Observed()
        self._starts: Ends = {}
        self._read: dict[Place, int] = {}
        """Offset up to which each partition was read, markers included."""
        self._consumer: Consumer = consumer(
            settings,
            f"labels-watch-{uuid.uuid4()}",
            **{
                "queued.max.messages.kbytes": _QUEUE_KB,
                # Tells of the end that lies behind a transaction's marker.
                "enable.partition.eof": True,
                **gather(wait_ms=20),
            },
        )

    def begin(self, ends: Ends) -> None:
        """Forget all, and read on from `ends`."""
        self.observed.clear()
        self._starts, self._read = ends, dict(ends)
        self._consumer.assign([TopicPartition(*place, offset) for place, offset in ends.items()])

    def end(self) -> None:
        """Forget all, and read nothing."""
        self.observed.clear()
        self._starts, self._read = {}, {}
        self._consumer.unassign()

    def read(self) -> list[Names]:
        """Take over what there is, without waiting; the names of what is new."""
        if not self._starts:
            return []
        added = []
        for message in self._consumer.consume(_RECORDS, 0.0):
            error = message.error()
            ended = error is not None and error.code() == KafkaError._PARTITION_EOF
            if error is not None and not ended:
                if error.fatal() or not error.retriable():
                    raise KafkaException(error)
                continue
            place, offset = (message.topic() or "", message.partition() or 0), message.offset() or 0
            # What lies before the start may have been labelled by somebody else.
            if offset < self._starts.get(place, 0):
                continue
            self._read[place] = offset if ended else offset + 1
            names = None if ended else self.observed.add(decode_batch(message.value() or b""))
            if names is not None:
                added.append(names)
        return added

    def passed(self, ends: Ends) -> bool:
        """Whether everything readable of `observations` below `ends` was read, or lies before the start."""
        return all(offset >= ends.get(place, 0) for place, offset in self._read.items())

    def close(self) -> None:
        """Let go."""
        self._consumer.close()
