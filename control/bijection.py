"""The audit's arithmetic: does every request have exactly one answer and one observation? Arrays in, counts out; no I/O.

Ids are compared as 16-byte strings (dtype S16), those of redriven requests with their attempt before them (S17): both sides have the
fixed width, so trailing zero bytes do not matter.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

EXAMPLES: Final = 5

Ids = NDArray[np.bytes_]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Requests(NamedTuple):
    """Request rows: partition by partition, within one in the order of their offsets and of the rows in a record."""

    ids: Ids
    partitions: Ints
    offsets: Ints


class Predictions(NamedTuple):
    """Rows of the predictions topic: partition by partition, within one in the order of the log."""

    ids: Ids
    partitions: Ints
    answered: Flags
    attempts: Ints

    def only(self, mask: Flags) -> Predictions:
        """The records of `mask`."""
        return Predictions(self.ids[mask], self.partitions[mask], self.answered[mask], self.attempts[mask])


class Observations(NamedTuple):
    """Observation rows in any order."""

    ids: Ids
    live: Flags
    answered: Flags
    arms: Ints
    """Codes: equal if the arms are."""
    revisions: Ints
    """Of the route table that chose the arm."""
    attempts: Ints

    def only(self, mask: Flags) -> Observations:
        """The rows of `mask`."""
        return Observations(
            self.ids[mask], self.live[mask], self.answered[mask], self.arms[mask], self.revisions[mask], self.attempts[mask],
        )  # fmt: skip


class Fault(NamedTuple):
    """How often something is wrong, and some ids that show it."""

    rows: int
    examples: list[str]


def ids_of(raw: NDArray[np.void] | bytes) -> Ids:
    """16-byte ids as comparable strings."""
    flat = raw if isinstance(raw, bytes) else np.ascontiguousarray(raw).tobytes()
    return np.frombuffer(flat, dtype="S16")


def ids_of_texts(texts: Iterable[str]) -> Ids:
    """The ids that UUID texts say. A text that is no UUID becomes an id of zeros, which no request has."""
    raw = bytearray()
    for text in texts:
        digits = text.replace("-", "")
        try:
            one = bytes.fromhex(digits)
        except ValueError:
            one = b""
        raw += one if len(one) == 16 else bytes(16)
    return ids_of(bytes(raw))


def with_attempts(ids: Ids, attempts: Ints) -> Ids:
    """The ids of attempts: the attempt's byte, then the 16 bytes of the id."""
    whole = np.empty((len(ids), 17), dtype=np.uint8)
    whole[:, 0] = attempts
    whole[:, 1:] = np.frombuffer(ids.tobytes(), dtype=np.uint8).reshape(len(ids), 16)
    return whole.view("S17").ravel()


def locate(requests: Requests, ids: Ids) -> Ints:
    """For each of `ids` the index of its request, -1 if there is none."""
    if not len(requests.ids):
        return np.full(len(ids), -1, dtype=np.int64)
    order = np.argsort(requests.ids, kind="stable")
    ordered = requests.ids[order]
    place = np.minimum(np.searchsorted(ordered, ids), len(ordered) - 1)
    return np.where(ordered[place] == ids, order[place], -1)


def fault(mask: Flags, ids: Ids) -> Fault:
    """The rows of `mask`."""
    where = np.flatnonzero(mask)
    return Fault(len(where), [uuid.UUID(bytes=_bytes(ids, int(i))[-16:]).hex for i in where[:EXAMPLES]])


def times(found: Ints, n: int) -> Ints:
    """How often each of `n` requests was found; -1 (none) is passed over."""
    return np.bincount(found[found >= 0], minlength=n).astype(np.int64)


def surplus(counts: Ints, ids: Ids) -> Fault:
    """What is there more than once: every one beyond the first counts."""
    return fault(counts > 1, ids)._replace(rows=int(np.maximum(counts - 1, 0).sum()))


def misordered(requests: Requests, predictions: Predictions, found: Ints) -> Fault:
    """Answers in another partition than their request, or after the answer to a later one."""
    known = found >= 0
    wrong = np.zeros(len(found), dtype=bool)
    wrong[known] = requests.partitions[found[known]] != predictions.partitions[known]
    for partition in np.unique(predictions.partitions):
        rows = np.flatnonzero(known & (predictions.partitions == partition) & ~wrong)
        wrong[rows[1:]] |= np.diff(found[rows]) < 0
    return fault(wrong, predictions.ids)


def expired(predictions: Predictions, found: Ints, truncated: Iterable[int]) -> Flags:
    """Answers to requests that Kafka has dropped: in the partitions that lost their start, those before the first known one."""
    gone = np.zeros(len(found), dtype=bool)
    for partition in truncated:
        rows = np.flatnonzero(predictions.partitions == partition)
        unknown = found[rows] < 0
        first_known = int(np.argmin(unknown)) if not unknown.all() else len(rows)
        gone[rows[:first_known]] = True
    return gone


def shadow_duplicates(observations: Observations, found: Ints) -> Fault:
    """Shadow rows beyond the first of one request and arm."""
    rows = np.flatnonzero(~observations.live & (found >= 0))
    pairs = np.stack([found[rows], observations.arms[rows]], axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    repeated = np.ones(len(rows), dtype=bool)
    repeated[first] = False
    mask = np.zeros(len(found), dtype=bool)
    mask[rows[repeated]] = True
    return fault(mask, observations.ids)


def shadow_missing(observations: Observations, found: Ints, expected: dict[int, list[int]]) -> int:
    """Copies that shadow arms owe. `expected`: revision → codes of the arms that copy every answered live row."""
    owed = 0
    answered = observations.live & observations.answered & (found >= 0)
    for revision, arms in expected.items():
        here = observations.revisions == revision
        rows = len(np.unique(found[here & answered]))
        for arm in arms:
            copies = here & ~observations.live & (observations.arms == arm) & (found >= 0)
            owed += max(rows - len(np.unique(found[copies])), 0)
    return owed


def _bytes(ids: Ids, index: int) -> bytes:
    return ids[index : index + 1].tobytes()
