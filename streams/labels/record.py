"""One feedback record: as it came in, as it waits in the state topic, and what it says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, cast

import msgspec
from confluent_kafka import Message

from runtime.dead_letters import redriven_from
from runtime.headers import Headers, pairs
from schemas.dead_letters import Origin
from schemas.errors import Rejection
from schemas.feedback import decode_feedback
from schemas.spec import ModelSpec
from schemas.topics import FEEDBACK, FEEDBACK_REDRIVES

NEWEST_MS: Final = 10_413_791_999_999
"""ClickHouse's DateTime64 ends with the year 2299."""


class Received(msgspec.Struct, frozen=True, array_like=True):
    """A feedback record with what a dead letter needs to keep of it; also the form in which it waits in the state topic."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    arrived_ms: int
    """When this stage first saw it."""
    orphaned: bool = False
    """Given up and dead-lettered, though a later prediction may still revive it."""


class Label(NamedTuple):
    """What a record says about one prediction, named by exactly one of `prediction_id` and `request_id`."""

    received: Received
    feedback_id: str
    prediction_id: str
    request_id: str
    at_ms: int
    truth: str
    truth_value: float


def receive(messages: Iterable[Message], now_ms: int) -> list[Received]:
    """The records in `messages`. Most producers write the same headers on every record: those that are like the ones before are kept once."""
    found = []
    said: object = None
    headers: list[tuple[str, bytes | None]] = []
    for message in messages:
        own = message.headers()
        if own != said:
            said = own
            headers = [
                (name, value.encode() if isinstance(value, str) else value) for name, value in pairs(own)
            ]
        found.append(
            Received(
                topic=message.topic() or "",
                partition=message.partition() or 0,
                offset=message.offset() or 0,
                timestamp_ms=message.timestamp()[1],
                key=message.key(),
                value=message.value(),
                headers=headers,
                arrived_ms=now_ms,
            )
        )
    return found


def decode(received: Received, spec: ModelSpec) -> Label | None:
    """The label in a record; None for feedback that is valid and no label: rating, thumb, comment, signal.

    Raises:
        Rejection: names the field and what was expected.
    """
    feedback = decode_feedback(received.value or b"", spec)
    if feedback.kind not in ("label", "correction"):
        return None
    origin = origin_of(received, spec.name)
    sent_ms = received.timestamp_ms if origin is None else origin.timestamp_ms
    at_ms = sent_ms if feedback.at_ms is None else feedback.at_ms
    number = float("nan") if isinstance(feedback.value, str) else float(feedback.value)
    return Label(
        received=received,
        feedback_id=feedback.feedback_id,
        prediction_id=feedback.prediction_id,
        request_id=feedback.request_id,
        at_ms=min(max(at_ms, 0), NEWEST_MS),
        truth=feedback.value if isinstance(feedback.value, str) else "",
        truth_value=number,
    )


def origin_of(received: Received, model: str) -> Origin | None:
    """What a redriven record was; None for an ordinary one.

    Raises:
        Rejection: it came through the redrives and does not say.
    """
    if received.topic != FEEDBACK_REDRIVES.for_model(model):
        return None
    return redriven_from(as_message(received), FEEDBACK.for_model(model))


def known_origin(received: Received, model: str) -> Origin | None:
    """As `origin_of`; None for a record that does not say either."""
    try:
        return origin_of(received, model)
    except Rejection:
        return None


def as_message(received: Received) -> Message:
    """The record with the methods of a Kafka message, for whoever writes dead letters."""
    return cast(Message, _AsMessage(received))


class _AsMessage:
    def __init__(self, received: Received) -> None:
        self._received = received

    def topic(self) -> str:
        return self._received.topic

    def partition(self) -> int:
        return self._received.partition

    def offset(self) -> int:
        return self._received.offset

    def timestamp(self) -> tuple[int, int]:
        return 1, self._received.timestamp_ms

    def key(self) -> bytes | None:
        return self._received.key

    def value(self) -> bytes | None:
        return self._received.value

    def headers(self) -> Headers:
        return [*self._received.headers]
