"""Dead letters and redrives: the original bytes and headers, and behind them a block of headers of ours (`schemas.dead_letters`)."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Final

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from runtime.headers import Headers, pairs
from runtime.transactions import TransactionalProducer
from schemas import dead_letters as names
from schemas.dead_letters import MAX_ATTEMPT, ORIGIN_HEADERS, Origin
from schemas.errors import Rejection
from schemas.topics import COPY_BYTES, DEAD_LETTERS

COPIED_BYTES: Final = COPY_BYTES - 64 * 1024
"""Leaves room for our headers and framing."""


def produce_dead_letter(
    producer: TransactionalProducer,
    message: Message,
    rejection: Rejection,
    *,
    stage: str,
    model: str,
    topic_id: uuid.UUID,
    now_ms: int,
    origin: Origin | None = None,
) -> None:
    """Add the dead letter of `message` to the producer's open transaction: original key, value and headers (unless they are too large to
    be copied), then ours.

    `topic_id` is of the message's topic; `origin`, if the message is a redriven record, says what it was: then its origin headers are
    left out, and the dead letter is of the original again.
    """
    headers = pairs(message.headers())
    if origin is None:
        original = headers
        origin = own_place(message, topic_id)
    else:
        original, _ = split(headers, ORIGIN_HEADERS)
    block: Headers = [
        (name, value.encode("utf-8", "replace"))
        for name, value in (
            (names.REASON, rejection.reason), (names.STAGE, stage), (names.MESSAGE, rejection.message),
            (names.FIELD, rejection.field), (names.MODEL, model),
        )
    ]  # fmt: skip
    block += [*origin_headers(origin), (names.DIED_AT_MS, str(now_ms).encode())]
    key, value = message.key(), message.value()
    if (size_bytes := _size_bytes(key, value, original)) > COPIED_BYTES:
        key, value, original = None, b"", []
        block.append((names.OMITTED_BYTES, str(size_bytes).encode()))
    producer.produce(DEAD_LETTERS.name, value, key=key, headers=[*original, *block])


def _size_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    texts = [text for name, content in headers for text in (name, content or b"")]
    return len(key or b"") + len(value or b"") + sum(map(len, texts))


def own_place(message: Message, topic_id: uuid.UUID) -> Origin:
    """The origin of a record that was not redriven: itself."""
    kind, stamp = message.timestamp()
    return Origin(
        topic=message.topic() or "",
        topic_id=topic_id,
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        timestamp_ms=-1 if kind == TIMESTAMP_NOT_AVAILABLE else stamp,
    )


def origin_headers(origin: Origin) -> Headers:
    """`ORIGIN_HEADERS` of `origin`, in their order."""
    values = (
        origin.topic, origin.topic_id, origin.partition, origin.offset, origin.timestamp_ms, origin.attempt,
    )  # fmt: skip
    return [(name, str(value).encode()) for name, value in zip(ORIGIN_HEADERS, values, strict=True)]


def split(headers: Headers, ours: Collection[str]) -> tuple[Headers, dict[str, str]]:
    """The original's headers, and the block of `ours` that stands behind them, as text.

    The block ends where a header is none of ours, or one that was seen: before it stands what the original called by the same names.
    """
    found: dict[str, str] = {}
    end = len(headers)
    while end:
        name, value = headers[end - 1]
        if name not in ours or name in found:
            break
        found[name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
        end -= 1
    return headers[:end], found


def read_origin(found: dict[str, str]) -> Origin:
    """The origin in a block of headers.

    Raises:
        Rejection: one is missing or says nothing that can be an origin.
    """
    try:
        origin = Origin(
            topic=found[names.TOPIC],
            topic_id=uuid.UUID(found[names.TOPIC_ID]),
            partition=_number(found, names.PARTITION, 0, (1 << 31) - 1),
            offset=_number(found, names.OFFSET, 0, (1 << 63) - 1),
            timestamp_ms=_number(found, names.TIMESTAMP_MS, -(1 << 63), (1 << 63) - 1),
            # Dead letters of an earlier release do not say it.
            attempt=_number({names.ATTEMPT: "0", **found}, names.ATTEMPT, 0, MAX_ATTEMPT),
        )
    except KeyError as error:
        raise Rejection("bad_origin", error.args[0], "a header that says where the original lay") from None
    except ValueError as error:
        raise Rejection("bad_origin", "", "headers that say where the original lay", str(error)) from None
    return origin


def redriven_from(message: Message, topic: str) -> Origin:
    """The origin of a record on a topic of redrives, which must have lain in `topic`.

    Raises:
        Rejection: it does not say so.
    """
    origin = read_origin(split(pairs(message.headers()), ORIGIN_HEADERS)[1])
    if origin.topic != topic:
        raise Rejection("bad_origin", names.TOPIC, topic, f"found {origin.topic[:100]!r}")
    if origin.attempt == 0:
        raise Rejection("bad_origin", names.ATTEMPT, f"a number from 1 to {MAX_ATTEMPT}", "found none or 0")
    return origin


def _number(found: dict[str, str], name: str, low: int, high: int) -> int:
    number = int(found[name])
    if not low <= number <= high:
        raise ValueError(f"{name}: found {number}")
    return number
