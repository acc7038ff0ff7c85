"""Dead letters as an operator sees them: read from Kafka, with what was decided about each (`control.redrive`)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Final

import msgspec
from confluent_kafka import KafkaException, Message

from runtime.compacted import CompactedTopic
from runtime.dead_letters import read_origin, split
from runtime.headers import Headers, pairs
from runtime.kafka import admin, topic_ids
from runtime.reader import TopicReader
from runtime.settings import Settings
from schemas import dead_letters as names
from schemas.dead_letters import DEAD_LETTER_HEADERS, Origin
from schemas.errors import Outage, Rejection
from schemas.events import DeadLetterDecision
from schemas.identity import name_id, prediction_id
from schemas.topics import (
    DEAD_LETTER_DECISIONS,
    DEAD_LETTERS,
    FEEDBACK,
    FEEDBACK_REDRIVES,
    REDRIVES,
    REQUESTS,
    Topic,
)

_REDRIVES: Final[tuple[tuple[Topic, Topic], ...]] = ((REQUESTS, REDRIVES), (FEEDBACK, FEEDBACK_REDRIVES))


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter."""

    topic_id: uuid.UUID
    """Of the dead-letter topic."""
    partition: int
    offset: int
    reason: str
    stage: str
    message: str
    field: str
    model: str
    died_at_ms: int
    origin: Origin
    key: bytes | None
    value: bytes | None
    headers: Headers
    """The original's."""
    omitted_bytes: int = 0
    """Size of key, value and headers, where they were too large to be copied."""
    status: str = "open"
    """open, redriven or discarded."""

    @property
    def place(self) -> str:
        """`topic:partition:offset` of the dead letter, by which people name it."""
        return f"{DEAD_LETTERS.name}:{self.partition}:{self.offset}"

    @property
    def decision_id(self) -> str:
        """The event id of the decision about it. Dead letters of one attempt of one record (one for each of its bad rows) are decided on
        together: sending the record again answers all of them."""
        origin = self.origin
        return str(
            name_id(
                "dead letter", self.stage, origin.topic_id, origin.partition, origin.offset, origin.attempt
            )
        )

    @property
    def redrive_topic(self) -> str:
        """Where it is sent again, "" if it is neither a request nor feedback."""
        for original, redrives in _REDRIVES:
            if self.model and self.origin.topic == original.for_model(self.model):
                return redrives.for_model(self.model)
        return ""

    @property
    def prediction_id(self) -> uuid.UUID | None:
        """The prediction that rejected it, None if it is no request."""
        origin = self.origin
        if not self.model or origin.topic != REQUESTS.for_model(self.model):
            return None
        return prediction_id(origin.timestamp_ms, origin.topic_id, origin.partition, origin.offset)


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters are meant: those that fit everything that is given."""

    places: frozenset[tuple[int, int]] = frozenset()
    """(partition, offset) of dead letters."""
    model: str = ""
    stage: str = ""
    reason: str = ""
    field: str = ""
    since_ms: int | None = None
    """Died then or later."""
    until_ms: int | None = None
    """Died before."""
    status: str = ""
    attempt: int | None = None
    """The attempt that died; 0: the original."""

    def takes(self, letter: DeadLetter) -> bool:
        """Whether `letter` is meant."""
        return (
            (not self.places or (letter.partition, letter.offset) in self.places)
            and self.model in ("", letter.model)
            and self.stage in ("", letter.stage)
            and self.reason in ("", letter.reason)
            and self.field in ("", letter.field)
            and (self.since_ms is None or letter.died_at_ms >= self.since_ms)
            and (self.until_ms is None or letter.died_at_ms < self.until_ms)
            and self.status in ("", letter.status)
            and self.attempt in (None, letter.origin.attempt)
        )


def find(settings: Settings, wanted: Filter) -> Iterator[DeadLetter]:
    """The dead letters that `wanted` takes, partition by partition, oldest first.

    Raises:
        Outage: Kafka is away.
    """
    decided = decisions(settings)
    yield from (letter for letter in _read(settings, decided) if wanted.takes(letter))


def decisions(settings: Settings) -> dict[str, str]:
    """Event id → action of every decision that was committed before this call."""
    try:
        topic = CompactedTopic(settings, DEAD_LETTER_DECISIONS.name)
    except KafkaException as error:
        raise Outage(f"Kafka: {error.args[0].str()}") from error
    topic.close()
    return {
        key.decode(): msgspec.json.decode(value, type=DeadLetterDecision).action
        for key, value in topic.values.items()
    }


def _read(settings: Settings, decided: dict[str, str]) -> Iterator[DeadLetter]:
    """All committed dead letters up to the topic's present end; what others wrote there, without our headers, is passed over."""
    reader = TopicReader(settings, "dead-letters")
    try:
        topic_id = topic_ids(admin(settings), [DEAD_LETTERS.name]).get(DEAD_LETTERS.name)
        if topic_id is None:
            raise Outage(f"Kafka has no topic {DEAD_LETTERS.name} (yet)")
        for place in reader.places(DEAD_LETTERS.name):
            for message in reader.whole([place]):
                letter = read_letter(message, topic_id)
                if letter is not None:
                    yield msgspec.structs.replace(letter, status=decided.get(letter.decision_id, "open"))
    except KafkaException as error:
        raise Outage(f"Kafka: {error.args[0].str()}") from error
    finally:
        reader.close()


def read_letter(message: Message, topic_id: uuid.UUID) -> DeadLetter | None:
    """The dead letter in a record of the topic `topic_id`, None if it lacks our headers."""
    original, ours = split(pairs(message.headers()), DEAD_LETTER_HEADERS)
    try:
        origin = read_origin(ours)
        died_at_ms = int(ours.get(names.DIED_AT_MS, ""))
        omitted_bytes = int(ours.get(names.OMITTED_BYTES, "0"))
    except (Rejection, ValueError):
        return None
    return DeadLetter(
        topic_id=topic_id,
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        reason=ours.get(names.REASON, ""),
        stage=ours.get(names.STAGE, ""),
        message=ours.get(names.MESSAGE, ""),
        field=ours.get(names.FIELD, ""),
        model=ours.get(names.MODEL, ""),
        died_at_ms=died_at_ms,
        origin=origin,
        key=message.key(),
        value=message.value(),
        headers=original,
        omitted_bytes=omitted_bytes,
    )
