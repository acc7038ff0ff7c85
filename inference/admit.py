"""What a record must be before its value is read: of a size, a content type and a timestamp that can be served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import pyarrow as pa
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message
from numpy.typing import NDArray

from inference.explain import REQUEST_ID_CHARS
from inference.headers import CLOUDEVENTS_ID, Said
from inference.redrive import NONE, Redriven
from inference.rows import Rows
from schemas.dead_letters import Origin
from schemas.errors import Rejection
from schemas.formats import CONTENT_TYPES, Format, arrow_rows_limit, read_arrow
from schemas.identity import MAX_TIMESTAMP_MS
from schemas.requests import CONTENT_TYPE
from schemas.spec import ModelSpec

KEY_BYTES: Final = 64 * 1024
"""Longest key: it is copied into the answer, the observation and each label."""


@dataclass(frozen=True, eq=False)
class Admitted:
    """What the records of a micro-batch carry beside their values; everything in the records' order."""

    values: list[bytes | None]
    keys: list[bytes | None]
    """None also where it is too long."""
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
    formats: dict[int, Format]
    """Index → format, where it is not JSON."""
    batches: dict[int, pa.RecordBatch]
    """Index → the rows of an Arrow record."""

    @cached_property
    def rows(self) -> Rows:
        """The rows of the records: one each, but for Arrow records that can be read."""
        return Rows.of(len(self.values), {index: batch.num_rows for index, batch in self.batches.items()})


def admit(
    spec: ModelSpec,
    messages: list[Message],
    headers: Mapping[int, Said],
    largest_bytes: int,
    redriven: Redriven = NONE,
) -> Admitted:
    """Read everything but the values of `messages`, and refuse what cannot be served whatever its value says.

    `headers` is what `headers.said` tells of `messages`, `largest_bytes` the size of the largest value. A redriven record is told apart
    by its topic alone: `tidemill-` headers of any other record mean nothing.
    """
    n = len(messages)
    values = [message.value() for message in messages]
    keys = [message.key() for message in messages]
    kinds, stamps = zip(*[message.timestamp() for message in messages], strict=True)
    timestamps = np.array(stamps, np.int64)
    if TIMESTAMP_NOT_AVAILABLE in kinds:
        timestamps[np.array(kinds) == TIMESTAMP_NOT_AVAILABLE] = -1
    offsets = np.array([message.offset() for message in messages], np.int64)
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
    if max(map(len, filter(None, keys)), default=0) > KEY_BYTES:
        for index, key in enumerate(keys):
            if key is not None and len(key) > KEY_BYTES:
                refused[index] = Rejection(
                    "oversized", "key", f"a key of at most {KEY_BYTES} bytes", f"found {len(key)} bytes"
                )
                keys[index] = None
    formats: dict[int, Format] = {}
    batches: dict[int, pa.RecordBatch] = {}
    for index, (found, content_type, identity, parent) in headers.items():
        if found is None:
            refused.setdefault(index, _unsupported(content_type))
        elif found != "json":
            formats[index] = found
        if found == "arrow":
            try:
                batches[index] = read_arrow(values[index] or b"", arrow_rows_limit(spec))
            except Rejection as rejection:
                refused.setdefault(index, rejection.bare())
        if identity:
            if len(identity) > REQUEST_ID_CHARS:
                refused.setdefault(index, _long_identity(identity))
            request_ids[index] = identity[:REQUEST_ID_CHARS]
        if parent:
            traceparents[index] = parent
    limit = spec.serve.max_request_bytes
    if largest_bytes > limit:
        for index, message in enumerate(messages):
            if len(message) > limit and formats.get(index) != "arrow":
                refused[index] = Rejection(
                    "oversized", "", f"at most {limit} bytes", f"found {len(message)} bytes"
                )
    return Admitted(
        values, keys, entities(keys), offsets, timestamps, refused, request_ids, traceparents,
        redriven.origins, attempts, formats, batches,
    )  # fmt: skip


def _unsupported(content_type: str) -> Rejection:
    return Rejection(
        "unsupported_content_type", CONTENT_TYPE, f"one of {', '.join(sorted(CONTENT_TYPES))}",
        f"found {content_type[:100]!r}",
    )  # fmt: skip


def _long_identity(identity: str) -> Rejection:
    return Rejection(
        "bad_envelope", CLOUDEVENTS_ID, f"a text of at most {REQUEST_ID_CHARS} characters",
        f"found {len(identity)} characters",
    )  # fmt: skip


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
