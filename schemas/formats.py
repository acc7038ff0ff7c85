"""The formats of a request record, by its content type: JSON (one row), MessagePack (one row), Arrow (many rows).

The answer comes in the request's format. Of an Arrow record each row has its own answer, observation and identity; a record that cannot
be read as Arrow, or that is too large, is one row, which is rejected.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal, TypeAlias

import pyarrow as pa

from schemas.arrow_size import first_message_bytes, unpacked_bytes
from schemas.errors import Rejection
from schemas.spec import ModelSpec

Format: TypeAlias = Literal["json", "msgpack", "arrow"]

MSGPACK_TYPE: Final = "application/msgpack"
ARROW_TYPE: Final = "application/vnd.apache.arrow.stream"
CONTENT_TYPES: Final[dict[str, Format]] = {
    "application/json": "json",
    "application/cloudevents+json": "json",
    "text/json": "json",
    MSGPACK_TYPE: "msgpack",
    "application/x-msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
    ARROW_TYPE: "arrow",
}
"""Without a content type a request is JSON."""
REQUEST_ID: Final = "request_id"
"""Column of an Arrow request with the producer's own ids."""
ARROW_BYTES: Final = 4 * 1024 * 1024
"""Largest Arrow request. Its answer must fit into one record too."""
ARROW_UNPACKED_BYTES: Final = 16 * 1024 * 1024
"""Largest once its compressed buffers are unpacked: a few kilobytes can say that they are gigabytes."""
ARROW_ROWS: Final = 8192
_ARROW_SCORES: Final = 512 * 1024
_KEPT_SCHEMA_BYTES: Final = 256 * 1024
_KEPT_SCHEMAS: Final = 16


def format_of(content_type: str) -> Format | None:
    """The format that a content-type header names; None: no format of a request.

    >>> format_of("application/json; charset=utf-8"), format_of(""), format_of("text/xml")
    ('json', 'json', None)
    """
    if not content_type:
        return "json"
    return CONTENT_TYPES.get(content_type.partition(";")[0].strip().lower())


def arrow_rows_limit(spec: ModelSpec) -> int:
    """Most rows in one Arrow request."""
    return max(1, min(ARROW_ROWS, _ARROW_SCORES // spec.outputs))


def read_arrow(value: bytes, limit_rows: int) -> pa.RecordBatch:
    """The rows of an Arrow request; its buffers point into `value` and are not checked yet.

    Raises:
        Rejection: it is too large, no Arrow stream, or has no rows.
    """
    if len(value) > ARROW_BYTES:
        raise Rejection("oversized", "", f"at most {ARROW_BYTES} bytes", f"found {len(value)} bytes")
    try:
        unpacked = unpacked_bytes(value)
        if unpacked > ARROW_UNPACKED_BYTES:
            raise Rejection(
                "oversized", "", f"at most {ARROW_UNPACKED_BYTES} bytes unpacked", f"found {unpacked} bytes"
            )
        batches = _batches(value)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Rejection("undecodable", "", "an Arrow IPC stream", str(error)[:200]) from None
    rows = sum(batch.num_rows for batch in batches)
    if rows > limit_rows:
        raise Rejection("oversized", "", f"at most {limit_rows} rows", f"found {rows} rows")
    if rows == 0:
        raise Rejection("undecodable", "", "an Arrow IPC stream with rows", "found none")
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _batches(value: bytes) -> list[pa.RecordBatch]:
    """The batches of a stream. A schema of hundreds of columns takes longer to read than their values, and a producer's is always the same."""
    start = first_message_bytes(value)
    schema = _schema(value[:start]) if 0 < start <= _KEPT_SCHEMA_BYTES else None
    if schema is None:
        with pa.ipc.open_stream(value) as reader:
            return list(reader)
    messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(value)[start:])
    return [pa.ipc.read_record_batch(message, schema) for message in messages]


@lru_cache(_KEPT_SCHEMAS)
def _schema(message: bytes) -> pa.Schema | None:
    """What a stream's first message says; None where dictionaries follow it, which only a stream's reader puts together."""
    schema = pa.ipc.read_schema(pa.py_buffer(message))
    return None if any(_has_dictionary(kind) for kind in schema.types) else schema


def _has_dictionary(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) or any(
        _has_dictionary(kind.field(place).type) for place in range(kind.num_fields)
    )


def request_rows(value: bytes | None, content_type: str, limit_rows: int) -> int:
    """How many rows a request record has, each with an identity of its own."""
    if format_of(content_type) != "arrow":
        return 1
    try:
        return int(read_arrow(value or b"", limit_rows).num_rows)
    except Rejection:
        return 1
