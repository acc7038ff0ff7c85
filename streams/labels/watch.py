"""Reads the end of `observations` into memory.

Every replica reads all of it: a label names nothing but an id, and which observations belong to one's own feedback partitions cannot be
told from them. A row costs about half a microsecond, and its features are not kept.
"""

from __future__ import annotations

import logging
from typing import Final

from runtime.kafka import gather
from runtime.positions import Ends, Place
from runtime.reader import TopicReader
from runtime.settings import Settings
from schemas.arrow import decode_batch
from schemas.errors import Rejection
from streams.labels.observed import READ, Names, Observed

log = logging.getLogger(__name__)

_RECORDS: Final = 200
"""At most so many in one read, so that a backlog holds up no label."""
_QUEUE_KB: Final = 16 * 1024


class Watch:
    """Follows `observations` from a place on."""

    def __init__(self, settings: Settings) -> None:
        self.observed = Observed()
        self._starts: Ends = {}
        self._reader = TopicReader(
            settings, "labels-watch", **{"queued.max.messages.kbytes": _QUEUE_KB, **gather(wait_ms=100)}
        )

    @property
    def positions(self) -> dict[Place, int]:
        """Offset up to which each partition was read, markers included; none while nothing is read."""
        return self._reader.positions

    def begin(self, ends: Ends) -> None:
        """Forget all, and read on from `ends`."""
        self.observed.clear()
        self._starts = ends
        self._reader.begin(ends)

    def end(self) -> None:
        """Forget all, and read nothing."""
        self.begin({})

    def read(self) -> list[Names]:
        """Take over what there is, without waiting; the names of what is new."""
        if not self._starts:
            return []
        added = []
        for message in self._reader.take(_RECORDS):
            place, offset = (message.topic() or "", message.partition() or 0), message.offset() or 0
            # What lies before the start may have been labelled by somebody else.
            if offset >= self._starts[place]:
                try:
                    names = self.observed.add(decode_batch(message.value() or b"", READ))
                except Rejection as error:
                    # No part of ours wrote it. The sink halts on it, keeps it and tells people.
                    log.error("%s:%d:%d is passed over: %s", *place, offset, error)
                    continue
                if names is not None:
                    added.append(names)
        return added

    def passed(self, ends: Ends) -> bool:
        """Whether everything readable of `observations` below `ends` was read, or lies before the start."""
        return all(offset >= ends.get(place, 0) for place, offset in self.positions.items())

    def close(self) -> None:
        """Let go."""
        self._reader.close()
