"""Progress against what is there to be read: who stands still although there is something to read ends, and is restarted.

A consumer can stop fetching without an error: librdkafka's (its issues 5430 and 5153; after a broker's restart it may hold to a leader's
epoch that has passed) as well as Faust's. What there is to read is asked of Kafka by clients of our own: the last stable offset first, and
where that is ahead, whether a committed record really comes before it (`runtime.positions`).

A verdict needs `STALLED_AFTER_SEC` without movement of that partition while Kafka answers and somebody looks; so restarts are at
least that far apart, and there are none while the broker is away or after the process was stopped for a while.

A consumer that is in no group reads nothing either, and has no partition to show it by: after a broker's restart it may look for the
group's coordinator for ever. It has `OUTSIDE_AFTER_SEC` in which the group answers others. And what no member has, none can show: see `runtime.unowned`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition

from runtime.kafka import REQUEST_TIMEOUT_SEC, consumer
from runtime.offsets import or_start, told
from runtime.positions import PROBING, EndOffsets, Place, next_record
from runtime.service import CRASHED, Stage
from runtime.settings import Settings
from runtime.unowned import Unowned
from schemas.errors import Outage, TidemillError

log = logging.getLogger(__name__)

STALLED_AFTER_SEC: Final = 30.0
OUTSIDE_AFTER_SEC: Final = 30.0
"""Longer than a rebalance lasts that waits for a member that is gone (`SESSION_TIMEOUT_MS`)."""
LOOK_EVERY_SEC: Final = 5.0
LONGEST_GAP_SEC: Final = 10.0
"""Time between two looks counts up to this: nobody knows what was in between."""
END_SEC: Final = 30.0
"""How long a process may take to end once one of its consumers has stalled: its other clients may hang as well."""
_PROBE_SEC: Final = 5.0

Positions = Mapping[Place, int | None]


def positions_of(client: Consumer) -> Positions:
    """How far `client` has read what is assigned to it."""
    return {
        (place.topic, place.partition): place.offset if place.offset >= 0 else None
        for place in client.position(client.assignment())
    }


class Stalled(TidemillError):
    """There is something to read and it is not read, or nobody knows that this process would read it."""


class _Seen(NamedTuple):
    position: int
    unread_sec: float | None = None
    """For how long there has been a record that the position did not move to; None if there is none."""
    nothing_before: int = 0
    """No record lies between the position and this offset."""


class StallDetector:
    """Compares positions with what there is; `look` waits for Kafka: not for a loop that has something else to do."""

    def __init__(
        self,
        settings: Settings,
        group: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        shared: Collection[str] = (),
    ) -> None:
        """The committed offsets of `group` count where nothing was read yet. `shared` are the topics that its members share, if they use
        `unowned.STRATEGY`."""
        self._settings, self._group, self._clock = settings, group, clock
        self._ends = EndOffsets(settings, _PROBE_SEC)
        self._unowned = Unowned(settings, group, shared) if shared else None
        self._probe: Consumer | None = None
        self._seen: dict[Place, _Seen] = {}
        self._looked_sec = clock()
        self._outside_sec = 0.0

    def look(self, positions: Positions, *, joined: bool = True) -> dict[Place, Stage]:
        """The stages of these partitions by the next offset that each will read; None: nothing was read yet.

        Leave out what is not read on purpose. What was seen of a partition that is left out is forgotten. `joined` says whether the
        group has given this process its partitions, be there none.

        Raises:
            Stalled: one of them stands still although there is something to read, or the group gives none though it answers.
        """
        now_sec = self._clock()
        passed_sec = min(now_sec - self._looked_sec, LONGEST_GAP_SEC)
        self._looked_sec = now_sec
        try:
            self._seek_group(joined, passed_sec)
            stages = self._look(positions, passed_sec)
        except (KafkaException, Outage) as error:
            log.warning("Kafka does not tell what there is to read: %s", error)
            self._seen.clear()
            self.close()  # it may hold to what has passed: another one, the next time
            return {}
        if self._unowned is not None and joined:
            try:
                self._unowned.look(passed_sec)
            except (KafkaException, Outage) as error:
                log.warning("%s", error)
        return stages

    def close(self) -> None:
        """Let go."""
        if self._probe is not None:
            self._probe.close()
            self._probe = None

    def _seek_group(self, joined: bool, passed_sec: float) -> None:
        """Count the time outside of the group in which its coordinator answers."""
        if joined:
            self._outside_sec = 0.0
            return
        self._prober().committed([TopicPartition(self._group, 0)], timeout=_PROBE_SEC)
        self._outside_sec += passed_sec
        if self._outside_sec > OUTSIDE_AFTER_SEC:
            raise Stalled(f"in no group {self._group} for {self._outside_sec:.0f} s, though it answers")

    def _look(self, positions: Positions, passed_sec: float) -> dict[Place, Stage]:
        self._seen = {place: seen for place, seen in self._seen.items() if place in positions}
        if not positions:
            return {}
        unread = [TopicPartition(*place) for place, position in positions.items() if position is None]
        started = {
            (found.topic, found.partition): found.offset
            for found in (or_start(self._prober(), told(self._prober(), unread)) if unread else [])
        }
        ends = self._ends.at(positions, stable=True)
        return {
            place: self._stage(
                place, started[place] if position is None else position, ends[place], passed_sec
            )
            for place, position in positions.items()
        }

    def _stage(self, place: Place, position: int, end: int, passed_sec: float) -> Stage:
        seen = self._seen.get(place)
        if seen is None or seen.position != position:
            seen = _Seen(position)
        if position < end and seen.nothing_before < end:
            if self._readable(place, position, end):
                unread_sec = 0.0 if seen.unread_sec is None else seen.unread_sec + passed_sec
                self._seen[place] = seen._replace(unread_sec=unread_sec)
                if unread_sec > STALLED_AFTER_SEC:
                    raise Stalled(
                        f"{place[0]}:{place[1]}: at offset {position} of {end} for {unread_sec:.0f} s"
                    )
                return Stage(lag_records=end - position, oldest_age_sec=unread_sec)
            seen = _Seen(position, nothing_before=end)
        self._seen[place] = seen
        return Stage()

    def _readable(self, place: Place, position: int, end: int) -> bool:
        """Whether a committed record lies in [position, end)."""
        found = next_record(self._prober(), place, position, within_sec=_PROBE_SEC, end=end)
        return not isinstance(found, int) and (found.offset() or 0) < end

    def _prober(self) -> Consumer:
        if self._probe is None:
            # The group's name only to read its offsets: it subscribes to nothing, so it is no member.
            self._probe = consumer(self._settings, self._group, **PROBING)
        return self._probe


class StallGuard(threading.Thread):
    """Looks beside a loop, and ends the process if something that the loop reads stands still."""

    def __init__(
        self,
        detector: StallDetector,
        every_sec: float = LOOK_EVERY_SEC,
        end_process: Callable[[int], Any] = os._exit,
    ) -> None:
        super().__init__(name="stalls", daemon=True)
        self._detector, self._every_sec, self._end_process = detector, every_sec, end_process
        self._positions: Positions = {}
        self._joined = True
        self._failure: Exception | None = None
        self._closed = threading.Event()

    def reading(self, positions: Positions, *, joined: bool) -> None:
        """What the loop reads at this moment, and how far it is; call it more often than `every_sec`: otherwise nobody is blamed.

        Raises:
            Stalled: one of them stands still, or is in no group; end.
        """
        if self._failure is not None:
            raise self._failure
        self._positions, self._joined = positions, joined

    def run(self) -> None:
        try:
            while not self._closed.wait(self._every_sec):
                positions, joined = self._positions, self._joined
                self._positions, self._joined = {}, True
                self._detector.look(positions, joined=joined)
        except Exception as error:  # noqa: BLE001  handed to the loop, which raises it
            log.error("ending: %s", error)
            self._failure = error
            if not self._closed.wait(END_SEC):
                self._end_process(CRASHED)
        finally:
            self._detector.close()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self.is_alive():
            self.join(REQUEST_TIMEOUT_SEC)
