"""Feedback whose prediction was not found yet: in the compacted topic `state` durably, and here with the times to try again.

A record is tried again when its prediction is observed, when the sink has passed the offsets that `observations` ended with at its
arrival, and after ever longer pauses. What is still not found then, and after the spec's `orphan_after_sec`, is an orphan: it is dead-lettered
once, and stays for a while, tried seldom, because a later prediction may still revive it.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

import msgspec

from runtime.positions import Ends
from streams.labels.observed import Names, half
from streams.labels.record import Label, Received

FIRST_PAUSE_SEC: Final = 0.5
LONGEST_PAUSE_SEC: Final = 10.0
ORPHAN_PAUSE_SEC: Final = 15.0
PAUSE_PER_WAITING_SEC: Final = 1e-4
"""The more wait, the longer each pauses: at most 10,000 look-ups a second."""
ORPHANS_KEPT: Final = 20_000
_PREFIX: Final = "labels"

Name: TypeAlias = tuple[str, int | str]
"""Model, and the half of a prediction id or a request id: what a label speaks of."""

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Received)


def state_key(received: Received, feedback_id: str) -> bytes:
    """Key in the state topic. A repeat that waits has the same."""
    return f"{_PREFIX}/{received.topic}/{received.partition}/{feedback_id}".encode()


def state_value(received: Received) -> bytes:
    """Value in the state topic."""
    return _encoder.encode(received)


def name_of(model: str, label: Label) -> Name:
    """What `label` speaks of."""
    return model, half(label.prediction_id) if label.prediction_id else label.request_id


def read_state(values: Mapping[bytes, bytes], places: Iterable[tuple[str, int]]) -> dict[bytes, Received]:
    """What waits of the partitions `places`, among all of the state topic's `values`."""
    prefixes = tuple(f"{_PREFIX}/{topic}/{partition}/".encode() for topic, partition in places)
    return {key: _decoder.decode(value) for key, value in values.items() if key.startswith(prefixes)}


class _Mark:
    """Offsets that the sink has to pass."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.passed = False
        self.keys: list[bytes] = []


class Entry:
    """One record that waits."""

    def __init__(self, key: bytes, received: Received, mark: _Mark, due_sec: float) -> None:
        self.key = key
        self.received = received
        self.due_sec = due_sec
        self.tries = 0
        self._mark = mark

    @property
    def caught_up(self) -> bool:
        """Whether ClickHouse has everything that was observed before this record's arrival."""
        return self._mark.passed


class Waiting:
    """All that wait, by state key. Times are monotonic seconds, passed in."""

    def __init__(self) -> None:
        self._entries: dict[bytes, Entry] = {}
        self._heap: list[tuple[float, bytes]] = []
        self._marks: deque[_Mark] = deque()
        self._orphans: dict[bytes, None] = {}
        self._named: dict[str, dict[int | str, set[bytes]]] = {}
        """Model → what is spoken of → state keys."""
        self._names: dict[bytes, Name] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    @property
    def undecided(self) -> int:
        """Those that are no orphans."""
        return len(self._entries) - len(self._orphans)

    def counts(self) -> dict[str, int]:
        """How many wait, by topic; orphans left out."""
        counts: dict[str, int] = {}
        for key, entry in self._entries.items():
            if key not in self._orphans:
                counts[entry.received.topic] = counts.get(entry.received.topic, 0) + 1
        return counts

    def add(self, records: Mapping[bytes, tuple[Received, Name | None]], ends: Ends, now_sec: float) -> None:
        """Let `records` wait; `ends` are those of `observations` now. One without a name is not tried when its prediction is observed."""
        if not records:
            return
        mark = _Mark(ends)
        self._marks.append(mark)
        for key, (received, name) in records.items():
            if name is not None:
                self._names[key] = name
                self._named.setdefault(name[0], {}).setdefault(name[1], set()).add(key)
            entry = self._entries[key] = Entry(key, received, mark, now_sec)
            if received.orphaned:
                self._orphans[key] = None
            else:
                mark.keys.append(key)
            self._push(entry, now_sec + FIRST_PAUSE_SEC)

    def wake(self, names: Names, now_sec: float) -> None:
        """These predictions were just observed: whatever speaks of them is due."""
        named = self._named.get(names.model)
        if not named:
            return
        for each in (*(named.keys() & names.predictions), *(named.keys() & names.requests)):
            for key in named[each]:
                self._push(self._entries[key], now_sec)

    def due(self, now_sec: float, passed: Callable[[Ends], bool], limit: int) -> list[Entry]:
        """At most `limit` entries to try now. Each has to be given to `remove`, `orphan` or `defer` then."""
        while self._marks and passed(self._marks[0].ends):
            mark = self._marks.popleft()
            mark.passed = True
            for key in mark.keys:
                if key in self._entries:
                    self._push(self._entries[key], now_sec)
        found: list[Entry] = []
        while self._heap and self._heap[0][0] <= now_sec and len(found) < limit:
            due_sec, key = heapq.heappop(self._heap)
            entry = self._entries.get(key)
            if entry is not None and entry.due_sec == due_sec:
                entry.due_sec = -1.0
                found.append(entry)
        return found

    def defer(self, entries: Iterable[Entry], now_sec: float) -> None:
        """Try these again later."""
        for entry in entries:
            if entry.key in self._entries:
                entry.tries += 1
                self._pause(entry, now_sec)

    def orphan(self, entry: Entry, received: Received, now_sec: float) -> None:
        """From now on an orphan; `received` says so."""
        entry.received = received
        self._orphans[entry.key] = None
        self._pause(entry, now_sec)

    def surplus(self) -> list[Entry]:
        """The oldest orphans beyond those that are kept."""
        excess = len(self._orphans) - ORPHANS_KEPT
        return [self._entries[key] for key, _ in zip(self._orphans, range(excess), strict=False)]

    def remove(self, keys: Iterable[bytes]) -> None:
        """These wait no longer."""
        for key in keys:
            self._entries.pop(key, None)
            self._orphans.pop(key, None)
            name = self._names.pop(key, None)
            if name is not None:
                model, spoken_of = name
                self._named[model][spoken_of].discard(key)
                if not self._named[model][spoken_of]:
                    del self._named[model][spoken_of]

    def clear(self) -> None:
        """Forget all; the state topic has them."""
        self._entries.clear()
        self._heap.clear()
        self._marks.clear()
        self._orphans.clear()
        self._named.clear()
        self._names.clear()

    def _pause(self, entry: Entry, now_sec: float) -> None:
        pause = ORPHAN_PAUSE_SEC
        if entry.key not in self._orphans:
            pause = min(FIRST_PAUSE_SEC * 2 ** min(entry.tries, 20), LONGEST_PAUSE_SEC)
            pause = max(pause, len(self._entries) * PAUSE_PER_WAITING_SEC)
        self._push(entry, now_sec + pause)

    def _push(self, entry: Entry, due_sec: float) -> None:
        entry.due_sec = due_sec
        heapq.heappush(self._heap, (due_sec, entry.key))
