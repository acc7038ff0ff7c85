"""Deterministic identity: a replayed record has the same id, a recreated topic never does.

A prediction id is laid out as RFC 9562's UUID version 7, so that it sorts by time and any tool reads its timestamp:
48 bits of the record's timestamp in milliseconds, then 74 bits mixed from (topic UUID, partition, offset, row)
instead of random ones.
"""

from __future__ import annotations

import functools
import hashlib
import uuid
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

MAX_TIMESTAMP_MS: Final = (1 << 48) - 1
_U64 = np.uint64
_GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea, Flood 2014): a bijection on 64 bits, here over an array."""
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    return x ^ (x >> _U64(31))


Run: TypeAlias = tuple[uuid.UUID, int, int]
"""Topic id, partition and number of consecutive records or rows of it."""


@functools.lru_cache(maxsize=4096)
def _source(topic_id: uuid.UUID, partition: int) -> tuple[np.uint64, np.uint64]:
    """What of an id is the partition's, and the lower half of the topic's id."""
    topic_hi, topic_lo = topic_id.int >> 64, topic_id.int & _MASK
    mixed = _mix(np.array([(topic_hi ^ ((partition + 1) * _GOLDEN)) & _MASK], dtype=_U64))
    return mixed[0], _U64(topic_lo)


def prediction_ids(
    timestamps_ms: NDArray[np.int64],
    runs: Sequence[Run],
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.void]:
    """Ids of `n` rows, `runs` saying of which partition they are: shape (n,), dtype V16, each the 16 bytes of a UUID in network order.

    A timestamp outside [0, 2**48) counts as 0: such a record is rejected, and its rejection needs an id too.
    """
    n = len(offsets)
    stamp = np.where((timestamps_ms < 0) | (timestamps_ms > MAX_TIMESTAMP_MS), 0, timestamps_ms).astype(_U64)
    of_runs = np.array([_source(topic, partition) for topic, partition, _ in runs], _U64)
    source, topic_lo = of_runs.reshape(-1, 2).T
    if len(runs) > 1:
        lengths = [length for _, _, length in runs]
        source, topic_lo = np.repeat(source, lengths), np.repeat(topic_lo, lengths)
    with np.errstate(over="ignore"):
        place = _mix(
            offsets.astype(_U64) * _U64(_GOLDEN) + rows.astype(_U64) * _U64(0xD1B54A32D192ED03) + source
        )
        first = _mix(place ^ topic_lo)
        second = _mix(place + _U64(_GOLDEN) ^ source)
    out = np.empty((n, 2), dtype=">u8")
    out[:, 0] = (stamp << _U64(16)) | _U64(0x7000) | (second >> _U64(52))
    out[:, 1] = (first >> _U64(2)) | _U64(1 << 63)
    return out.view("V16").reshape(n)


def prediction_id(
    timestamp_ms: int, topic_id: uuid.UUID, partition: int, offset: int, row: int = 0
) -> uuid.UUID:
    """The id of one row; the same bytes as `prediction_ids` gives.

    >>> topic = uuid.UUID("7f3c1c0a-6d5e-4a53-9c2b-0d3b8a6f1e11")
    >>> prediction_id(1_700_000_000_000, topic, 0, 41).version
    7
    """
    # int64 holds every timestamp Kafka can carry.
    ids = prediction_ids(
        np.array([timestamp_ms], dtype=np.int64),
        [(topic_id, partition, 1)],
        np.array([offset], dtype=np.int64),
        np.array([row], dtype=np.int64),
    )
    return uuid.UUID(bytes=ids[0].tobytes())


def name_bytes(*parts: object) -> bytes:
    """The 16 bytes of `name_id`, for those who make thousands of them at a time.

    >>> name_bytes("outcome", 7) == uuid.uuid5(_NAMESPACE, "outcome\x1f7").bytes
    True
    """
    named = _NAMESPACE_BYTES + "\x1f".join(map(str, parts)).encode()
    digest = bytearray(hashlib.sha1(named, usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return bytes(digest)


def name_id(*parts: object) -> uuid.UUID:
    """A deterministic UUID (version 5) for an event that is named by `parts`: repeats of it carry the same id."""
    return uuid.UUID(bytes=name_bytes(*parts))


def id_text(id_bytes: bytes) -> str:
    """The canonical text of a UUID's 16 bytes.

    >>> id_text(uuid.UUID("7f3c1c0a-6d5e-4a53-9c2b-0d3b8a6f1e11").bytes)
    '7f3c1c0a-6d5e-4a53-9c2b-0d3b8a6f1e11'
    """
    digits = id_bytes.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_OID, "tidemill")
_NAMESPACE_BYTES: Final = _NAMESPACE.bytes
