"""A dead letter as text and as JSON."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from control.dead_letters import DeadLetter


def summary(letter: DeadLetter) -> dict[str, object]:
    """A dead letter without its bytes."""
    origin = letter.origin
    return {
        "id": letter.place,
        "status": letter.status,
        "died_at": shown_time(letter.died_at_ms),
        "stage": letter.stage,
        "model": letter.model,
        "reason": letter.reason,
        "field": letter.field,
        "message": letter.message,
        "original": f"{origin.topic}:{origin.partition}:{origin.offset}",
        "topic_id": str(origin.topic_id),
        "timestamp_ms": origin.timestamp_ms,
        "attempt": origin.attempt,
        "prediction_id": "" if letter.prediction_id is None else str(letter.prediction_id),
        "size_bytes": len(letter.value or b""),
    }


def details(letter: DeadLetter) -> dict[str, object]:
    """A dead letter with its bytes, in hex."""
    headers = [
        [name, _hex(value.encode() if isinstance(value, str) else value)] for name, value in letter.headers
    ]
    return {
        **summary(letter), "key_hex": _hex(letter.key), "value_hex": _hex(letter.value), "headers_hex": headers,
    }  # fmt: skip


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def pretty(value: bytes | None) -> str:
    """JSON indented; other text as it is, with what is no text escaped."""
    if value is None:
        return "(none)"
    try:
        return msgspec.json.format(value, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return shown_bytes(value)


def shown_bytes(value: bytes | None) -> str:
    """Text as it is, with control characters escaped; hex if it is no text.

    >>> shown_bytes(b"tenant-1"), shown_bytes(bytes([0xff, 0x00])), shown_bytes(None)
    ('tenant-1', '0xff00', '(none)')
    """
    if value is None:
        return "(none)"
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"
    return text if text.isprintable() else repr(text)[1:-1]


def shown_time(at_ms: int) -> str:
    """In UTC, to the second."""
    return (
        datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") if at_ms >= 0 else "unknown"
    )
