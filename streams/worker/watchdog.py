"""Progress against what is there to be read; a worker that stands still although there is something to read ends, and is restarted.

Faust's consumer can stall without an error. What there is to read is asked of Kafka by a client of our own: the last stable
offset first, and where that is ahead, whether a committed record really comes before it. On a topic written by transactions the
position stays below the end for ever, since a trailing marker is no record.

A verdict needs `STALLED_AFTER_SEC` without movement of that partition while Kafka answers; so restarts are at least that far
apart, and there are none while the broker is away.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from runtime.kafka import admin, committed_or_start, consumer
from runtime.service import Stage
from runtime.settings import Settings
from schemas.errors import Outage, TidemillError

log = logging.getLogger(__name__)

STALLED_AFTER_SEC: Final = 30.0
PROBE_TIMEOUT_SEC: Final = 2.0

Place = tuple[str, int]


class Stalled(TidemillError):
    """There is something to read and it is not read."""


class _Seen(NamedTuple):
    position: int
    readable_since: float | None = None
    """When a record was first seen that the position did not move to."""
    nothing_before: int = 0
    """No record lies between the position and this offset."""


class Watchdog:
    """Looks at all partitions at once; `look` waits for Kafka, call it in a thread."""

    def __init__(self, settings: Settings, group: str, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._admin: AdminClient = admin(settings)
        self._group = group
        self._probe = self._connected()
        self._seen: dict[Place, _Seen] = {}

    def look(self, positions: dict[Place, int | None]) -> dict[Place, Stage]:
        """The stages of these partitions; None as position means that nothing was read yet, and the committed offset counts.

        Raises:
            Stalled: one of them stands still although there is something to read.
        """
        try:
            return self._look(positions)
        except (KafkaException, Outage) as error:
            log.warning("Kafka does not say how far it is: %s", error)
            self._seen.clear()
            # After a broker's restart a client may hold to a leader's epoch that has passed, and be refused for ever.
            self._probe.close()
            self._probe = self._connected()
            return {}

    def close(self) -> None:
        """Let go."""
        self._probe.close()

    def _connected(self) -> Consumer:
        # The group's name only to read its offsets: it subscribes to nothing, so it is no member.
        overrides: dict[str, Any] = {"enable.partition.eof": True}
        return consumer(self._settings, self._group, **overrides)

    def _look(self, positions: dict[Place, int | None]) -> dict[Place, Stage]:
        unread = [TopicPartition(*place) for place, position in positions.items() if position is None]
        started = {
            (found.topic, found.partition): found.offset
            for found in (committed_or_start(self._probe, unread) if unread else [])
        }
        ends = self._stable_ends(list(positions))
        self._seen = {place: seen for place, seen in self._seen.items() if place in positions}
        return {
            place: self._stage(place, started[place] if position is None else position, ends[place])
            for place, position in positions.items()
        }

    def _stage(self, place: Place, position: int, end: int) -> Stage:
        now = self._clock()
        seen = self._seen.get(place)
        if seen is None or seen.position != position:
            seen = _Seen(position)
        if position < end and seen.nothing_before < end:
            if self._readable(place, position, end):
                since = now if seen.readable_since is None else seen.readable_since
                self._seen[place] = seen._replace(readable_since=since)
                if now - since > STALLED_AFTER_SEC:
                    raise Stalled(
                        f"{place[0]}-{place[1]}: at offset {position} of {end} for {now - since:.0f} s"
                    )
                return Stage(lag_records=end - position, oldest_age_sec=now - since)
            seen = _Seen(position, nothing_before=end)
        self._seen[place] = seen
        return Stage()

    def _readable(self, place: Place, position: int, end: int) -> bool:
        """Whether a committed record lies in [position, end)."""
        self._probe.assign([TopicPartition(*place, position)])
        try:
            while True:
                message = self._probe.poll(PROBE_TIMEOUT_SEC)
                if message is None:
                    raise Outage(f"no answer about {place[0]}-{place[1]}")
                error = message.error()
                if error is None:
                    return (message.offset() or 0) < end
                if error.code() == KafkaError._PARTITION_EOF:
                    # One below the end is of an earlier probe, still in the queue.
                    if (message.offset() or 0) >= end:
                        return False
                elif not error.retriable():
                    raise KafkaException(error)
        finally:
            self._probe.unassign()

    def _stable_ends(self, places: list[Place]) -> dict[Place, int]:
        """Last stable offsets: where a read-committed reader's topic ends."""
        if not places:
            return {}
        latest: Any = OffsetSpec.latest  # published half typed
        futures = self._admin.list_offsets(
            {TopicPartition(*place): latest() for place in places},
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=PROBE_TIMEOUT_SEC * 2,
        )
        return {(place.topic, place.partition): future.result().offset for place, future in futures.items()}
