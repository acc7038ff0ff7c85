"""Dead letters: a record that can never be served is kept as it was, with why and from where."""

from __future__ import annotations

import uuid

from confluent_kafka import Message

from runtime.headers import Headers, pairs
from runtime.transactions import TransactionalProducer
from schemas import dead_letters as names
from schemas.errors import Rejection
from schemas.topics import DEAD_LETTERS


def produce_dead_letter(
    producer: TransactionalProducer,
    message: Message,
    rejection: Rejection,
    *,
    stage: str,
    model: str,
    topic_id: uuid.UUID,
    now_ms: int,
) -> None:
    """Add the dead letter of `message` to the producer's open transaction: original key, value and headers, plus ours."""
    producer.produce(
        DEAD_LETTERS.name,
        message.value(),
        key=message.key(),
        headers=dead_letter_headers(
            message, rejection, stage=stage, model=model, topic_id=topic_id, now_ms=now_ms
        ),
    )


def dead_letter_headers(
    message: Message, rejection: Rejection, *, stage: str, model: str, topic_id: uuid.UUID, now_ms: int
) -> Headers:
    """The original's headers (without any that pretend to be ours) and ours."""
    original: Headers = [
        (name, value) for name, value in pairs(message.headers()) if not name.startswith(names.PREFIX)
    ]
    ours = {
        names.REASON: rejection.reason,
        names.STAGE: stage,
        names.MESSAGE: rejection.message,
        names.FIELD: rejection.field,
        names.MODEL: model,
        names.TOPIC: message.topic() or "",
        names.TOPIC_ID: str(topic_id),
        names.PARTITION: str(message.partition()),
        names.OFFSET: str(message.offset()),
        names.TIMESTAMP_MS: str(message.timestamp()[1]),
        names.DIED_AT_MS: str(now_ms),
    }
    return [*original, *((name, value.encode("utf-8", "replace")) for name, value in ours.items())]
