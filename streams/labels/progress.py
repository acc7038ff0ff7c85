"""How far the sink has brought a topic into ClickHouse.

The offsets that group `sink` has committed confirm everything below them (`docs/delivery.md`). They stop short of a topic's end where
only transaction markers and aborted records follow; whether anything readable follows is tried with a read-committed consumer.

All of it is asked in a thread of its own, so that no join waits for it. Whichever client fails is replaced: after a broker's restart it
may hold to what has passed, and be refused for ever.
"""

from __future__ import annotations

import logging
import threading
import uuid
from typing import Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from runtime.kafka import REQUEST_TIMEOUT_SEC, consumer
from runtime.positions import PROBING, SINK_GROUP, EndOffsets, Ends, Place, next_record
from runtime.service import PROGRESS_LIMIT_SEC
from runtime.settings import Settings
from schemas.errors import Outage, TidemillError

log = logging.getLogger(__name__)

ASK_EVERY_SEC: Final = 0.25
STANDS_ROUNDS: Final = 3
"""A sink that commits nothing for so many rounds stands still: at work it commits with every insert."""
LONGEST_GAP_SEC: Final = 1.0
_PROBE_SEC: Final = 5.0


class SinkProgress(threading.Thread):
    """Follows what the sink has confirmed of `topics`; `passed` may be asked from any thread."""

    def __init__(self, settings: Settings, topics: tuple[str, ...]) -> None:
        super().__init__(name="sink-progress", daemon=True)
        self._rounds = 0
        """How often everything could be told."""
        self._rounds_seen, self._standing_sec = 0, 0.0
        self._settings, self._topics = settings, topics
        self._ends = EndOffsets(settings)
        self._group: Consumer | None = None
        self._prober: Consumer | None = None
        self._stands: dict[Place, tuple[int, int]] = {}
        """What is committed, and for how many rounds it has been."""
        self._confirmed: dict[Place, int] = {}
        self._ended = threading.Event()

    def passed(self, ends: Ends) -> bool:
        """Whether everything readable below `ends` is in ClickHouse."""
        confirmed = self._confirmed
        return all(confirmed.get(place, -1) >= end for place, end in ends.items())

    def insist(self, elapsed_sec: float) -> None:
        """To be called by whoever waits for `passed`, with the time since the last call, as long as Kafka answers the caller.

        Raises:
            TidemillError: no round was whole for `PROGRESS_LIMIT_SEC`: a restart helps.
        """
        if self._rounds != self._rounds_seen:
            self.excuse()
        # A process that was stopped for a while has not stood still all that time.
        self._standing_sec += min(elapsed_sec, LONGEST_GAP_SEC)
        if self._standing_sec > PROGRESS_LIMIT_SEC or not self.is_alive():
            raise TidemillError(
                f"nobody tells how far the sink is since {self._standing_sec:.0f} s: labels would wait for ever"
            )

    def excuse(self) -> None:
        """Kafka does not answer the caller either."""
        self._rounds_seen, self._standing_sec = self._rounds, 0.0

    def run(self) -> None:
        while not self._ended.wait(ASK_EVERY_SEC):
            if self.follow():
                self._rounds += 1
        self._leave()

    def follow(self) -> bool:
        """One round; whether everything could be told."""
        try:
            ends = self._ends.of(self._topics)
            committed = self._committed_of(list(ends))
        except (KafkaException, Outage) as error:
            log.warning("cannot tell the sink's progress: %s", error)
            self._leave()
            return False
        # Taken over before anything is tried: what the sink says holds, whatever else goes wrong.
        confirmed = {place: max(offset, self._confirmed.get(place, 0)) for place, offset in committed.items()}
        self._confirmed = confirmed
        self._stands = {place: (offset, self._stood(place, offset)) for place, offset in committed.items()}
        whole = True
        for place, offset in confirmed.items():
            # A sink at work tells by its commits; only one that stands still may stand before mere markers.
            if offset < ends[place] and self._stands[place][1] >= STANDS_ROUNDS:
                try:
                    self._confirmed = self._confirmed | {place: self._next_readable(place, offset)}
                except (KafkaException, Outage) as error:
                    log.warning("cannot tell what the sink has before it: %s", error)
                    self._leave()
                    whole = False
        return whole

    def _stood(self, place: Place, committed: int) -> int:
        before, rounds = self._stands.get(place, (-1, 0))
        return rounds + 1 if before == committed else 0

    def end(self) -> None:
        """End the thread and wait for it."""
        self._ended.set()
        if self.is_alive():
            self.join(REQUEST_TIMEOUT_SEC)

    def _leave(self) -> None:
        """Let go of the clients; there are others the next time."""
        for client in (self._group, self._prober):
            if client is not None:
                client.close()
        self._group = self._prober = None

    def _committed_of(self, places: list[Place]) -> dict[Place, int]:
        if self._group is None:
            # Only asks for the group's offsets: it never subscribes, so it is no member.
            self._group = consumer(self._settings, SINK_GROUP)
        found = {}
        for place in self._group.committed(
            [TopicPartition(*place) for place in places], timeout=REQUEST_TIMEOUT_SEC
        ):
            if place.error is not None:
                raise KafkaException(place.error)
            found[place.topic, place.partition] = max(place.offset, 0)
        return found

    def _next_readable(self, place: Place, offset: int) -> int:
        """`offset` if a committed record stands at or after it; else the end as a read-committed reader sees it."""
        if self._prober is None:
            self._prober = consumer(self._settings, f"probe-{uuid.uuid4()}", **PROBING)
        found = next_record(self._prober, place, offset, within_sec=_PROBE_SEC)
        return found if isinstance(found, int) else offset
