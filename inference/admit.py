"""What a record must be before its value is read: of a size, a content type and a timestamp that can be served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message
from numpy.typing import NDArray

from inference.explain import REQUEST_ID_CHARS
from inference.redrive import NONE, Redriven
from runtime.headers import Headers, pairs, text
from schemas.dead_letters import Origin
from schemas.errors import Rejection
from schemas.identity import MAX_TIMESTAMP_MS
from schemas.requests import CONTENT_TYPE, JSON_TYPES, TRACEPARENT
from schemas.spec import ModelSpec

CLOUDEVENTS_ID: Final = "ce_id"


@dataclass(frozen=True, eq=False)
class Admitted:
    """What the records of a micro-batch carry beside their values; everything in the records' order."""

    values: list[bytes | None]
    keys: list[bytes | None]
    entities: list[str]
    """Keys as text; hex where they are not UTF-8, "" where there is none."""
    offsets: NDArray[np.int64]
    timestamps_ms: NDArray[np.int64]
    """-1 where there is none."""
    rejections: dict[int, Rejection]
    request_ids: dict[int, str]
    """Index → CloudEvents id, where one was given."""
    traceparents: dict[int, str]
    """Index → W3C traceparent, where one was given."""
    origins: dict[int, Origin]
    """Index → what a redriven record was; its offset and timestamp above are the origin's."""
    attempts: NDArray[np.uint8]


def admit(spec: ModelSpec, messages: list[Message], redriven: Redriven = NONE) -> Admitted:
    """Read everything but the values of `messages`, and refuse what cannot be served whatever its value says.

    A redriven record is told apart by its topic alone: `tidemill-` headers of any other record mean nothing.
    """
    n = len(messages)
    values = [message.value() for message in messages]
    keys = [message.key() for message in messages]
    stamps = [message.timestamp() for message in messages]
    timestamps = np.fromiter(
        (ms if kind != TIMESTAMP_NOT_AVAILABLE else -1 for kind, ms in stamps), np.int64, n
    )
    offsets = np.fromiter((message.offset() for message in messages), np.int64, n)
    attempts = np.zeros(n, np.uint8)
    for index, origin in redriven.origins.items():
        offsets[index], timestamps[index], attempts[index] = (
            origin.offset,
            origin.timestamp_ms,
            origin.attempt,
        )
    refused: dict[int, Rejection] = dict(redriven.rejections)
    request_ids: dict[int, str] = {}
    traceparents: dict[int, str] = {}

    for index in np.flatnonzero((timestamps < 0) | (timestamps > MAX_TIMESTAMP_MS)).tolist():
        refused[index] = Rejection(
            "bad_timestamp",
            "",
            f"a record timestamp from 0 to {MAX_TIMESTAMP_MS} ms",
            f"found {timestamps[index]}",
        )
    limit = spec.serve.max_request_bytes
    if max(map(len, messages)) > limit:
        for index, message in enumerate(messages):
            if len(message) > limit:
                refused[index] = Rejection(
                    "oversized", "", f"at most {limit} bytes", f"found {len(message)} bytes"
                )
    for index, headers in enumerate([message.headers() for message in messages]):
        if not headers:
            continue
        named = pairs(headers)
        if index not in refused:
            rejection = _header_problem(named)
            if rejection is not None:
                refused[index] = rejection
        if identity := text(named, CLOUDEVENTS_ID):
            request_ids[index] = identity[:REQUEST_ID_CHARS]
        if parent := text(named, TRACEPARENT):
            traceparents[index] = parent
    return Admitted(
        values, keys, entities(keys), offsets, timestamps, refused, request_ids, traceparents,
        redriven.origins, attempts,
    )  # fmt: skip


def _header_problem(headers: Headers) -> Rejection | None:
    content_type = text(headers, CONTENT_TYPE)
    if content_type and content_type.partition(";")[0].strip().lower() not in JSON_TYPES:
        return Rejection(
            "unsupported_content_type", CONTENT_TYPE, f"one of {', '.join(sorted(JSON_TYPES))}",
            f"found {content_type[:100]!r}",
        )  # fmt: skip
    identity = text(headers, CLOUDEVENTS_ID)
    if len(identity) > REQUEST_ID_CHARS:
        return Rejection(
            "bad_envelope", CLOUDEVENTS_ID, f"a text of at most {REQUEST_ID_CHARS} characters",
            f"found {len(identity)} characters",
        )  # fmt: skip
    return None


def entities(keys: list[bytes | None]) -> list[str]:
    """Keys as text.

    >>> entities([b"tenant-1", None, bytes([0xff, 0x00])])
    ['tenant-1', '', 'ff00']
    """
    try:
        return [key.decode() if key else "" for key in keys]
    except UnicodeDecodeError:
        return [_entity(key or b"") for key in keys]


def _entity(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key.hex()
