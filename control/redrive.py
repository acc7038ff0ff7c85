"""Send dead letters again under their identity, or discard them; each is decided on once.

Whoever decides holds the transactional id `redrive`: a second operator fences the first, and what the first had open is aborted. Decisions are read
to their end after that, so nothing is decided twice. A redriven record and its decision are one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

import msgspec
from confluent_kafka import KafkaException

from control.dead_letters import DeadLetter, Filter, find
from runtime.dead_letters import origin_headers
from runtime.kafka import REQUEST_TIMEOUT_SEC, admin
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer
from schemas.dead_letters import MAX_ATTEMPT
from schemas.errors import Outage, UserError
from schemas.events import DeadLetterDecision
from schemas.topics import DEAD_LETTER_DECISIONS

TRANSACTIONAL_ID: Final = "redrive"
TRANSACTION_RECORDS: Final = 1000
TRANSACTION_BYTES: Final = 16 * 1024 * 1024
"""A transaction must end within the broker's time-out; a longer redrive is several, each whole."""
Action = Literal["redriven", "discarded"]


class NotRedrivable(UserError):
    """What was chosen cannot be sent again."""


def redrive(
    settings: Settings, wanted: Filter, limit: int | None, *, by: str, comment: str, now_ms: Callable[[], int]
) -> int:
    """Send the open dead letters that `wanted` takes (the oldest `limit` of them) again; return how many.

    In the order of their originals, to the partition of the same number. Interrupted, whole transactions are done and the rest is open.

    Raises:
        NotRedrivable: one of them is neither a request nor feedback, or has been redriven too often; nothing is sent.
        Outage, TransactionLost: the transaction under way has no effect; the same call goes on where it ended.
        Fenced: another operator has begun.
    """

    def send(producer: TransactionalProducer, letter: DeadLetter) -> None:
        origin = msgspec.structs.replace(letter.origin, attempt=letter.origin.attempt + 1)
        producer.produce(
            letter.redrive_topic, letter.value, key=letter.key,
            headers=[*letter.headers, *origin_headers(origin)], partition=origin.partition,
        )  # fmt: skip

    return _decide(settings, wanted, limit, "redriven", send, by=by, comment=comment, now_ms=now_ms)


def discard(
    settings: Settings, wanted: Filter, limit: int | None, *, by: str, comment: str, now_ms: Callable[[], int]
) -> int:
    """Mark the open dead letters that `wanted` takes (the oldest `limit` of them) as done with; return how many.

    The bytes stay until the topic's retention drops them.

    Raises:
        As `redrive`.
    """
    return _decide(settings, wanted, limit, "discarded", None, by=by, comment=comment, now_ms=now_ms)


def chosen(letters: Iterable[DeadLetter], limit: int | None) -> list[DeadLetter]:
    """What a decision is about: the open ones, in the order of their originals, one of each record and attempt; the oldest `limit` of them."""
    by_id: dict[str, DeadLetter] = {}
    for letter in letters:
        if letter.status == "open":
            by_id.setdefault(letter.decision_id, letter)
    oldest = sorted(by_id.values(), key=lambda letter: (letter.died_at_ms, letter.partition, letter.offset))
    return sorted(
        oldest[:limit],
        key=lambda letter: (
            letter.origin.topic,
            letter.origin.partition,
            letter.origin.offset,
            letter.origin.attempt,
        ),
    )


def refuse_what_cannot_be_redriven(letters: Iterable[DeadLetter]) -> None:
    """Raises `NotRedrivable` for the first that is neither a request nor feedback, was not copied, or has used up its attempts."""
    for letter in letters:
        if not letter.redrive_topic:
            raise NotRedrivable(
                f"{letter.place}: came from {letter.origin.topic or 'nowhere'}; only requests and feedback can be redriven (leave it out, or discard it)"
            )
        if letter.omitted_bytes:
            raise NotRedrivable(
                f"{letter.place}: the original has {letter.omitted_bytes} bytes, too many to be copied; discard it"
            )
        if letter.origin.attempt >= MAX_ATTEMPT:
            raise NotRedrivable(f"{letter.place}: was redriven {letter.origin.attempt} times; discard it")


def _decide(
    settings: Settings,
    wanted: Filter,
    limit: int | None,
    action: Action,
    send: Callable[[TransactionalProducer, DeadLetter], None] | None,
    *,
    by: str,
    comment: str,
    now_ms: Callable[[], int],
) -> int:
    # Initialising comes before reading: nobody else can decide on anything after what is read here.
    producer = TransactionalProducer(settings, TRANSACTIONAL_ID)
    try:
        letters = chosen(find(settings, wanted), limit)
        if send is not None:
            refuse_what_cannot_be_redriven(letters)
            _refuse_missing_partitions(settings, letters)
        for part in _parts(letters):
            producer.begin()
            for letter in part:
                if send is not None:
                    send(producer, letter)
                decision = _decision(letter, action, by, comment, now_ms())
                producer.produce(
                    DEAD_LETTER_DECISIONS.name, msgspec.json.encode(decision), key=decision.event_id.encode()
                )
            producer.commit()
    finally:
        producer.close()
    return len(letters)


def _parts(letters: list[DeadLetter]) -> Iterator[list[DeadLetter]]:
    """What goes into one transaction each."""
    part: list[DeadLetter] = []
    size_bytes = 0
    for letter in letters:
        part.append(letter)
        size_bytes += len(letter.value or b"")
        if len(part) >= TRANSACTION_RECORDS or size_bytes >= TRANSACTION_BYTES:
            yield part
            part, size_bytes = [], 0
    if part:
        yield part


def _decision(letter: DeadLetter, action: Action, by: str, comment: str, now_ms: int) -> DeadLetterDecision:
    origin = letter.origin
    return DeadLetterDecision(
        event_id=letter.decision_id,
        model=letter.model,
        at_ms=now_ms,
        action=action,
        stage=letter.stage,
        reason=letter.reason,
        dead_letter_topic_id=str(letter.topic_id),
        dead_letter_partition=letter.partition,
        dead_letter_offset=letter.offset,
        source_topic=origin.topic,
        source_topic_id=str(origin.topic_id),
        source_partition=origin.partition,
        source_offset=origin.offset,
        attempt=origin.attempt,
        by=by,
        comment=comment,
    )


def _refuse_missing_partitions(settings: Settings, letters: list[DeadLetter]) -> None:
    """Raises `NotRedrivable` if a redrive topic lacks the original's partition: a produce would fail half-way."""
    topics = {letter.redrive_topic for letter in letters}
    try:
        metadata = admin(settings).list_topics(timeout=REQUEST_TIMEOUT_SEC).topics if topics else {}
    except KafkaException as error:
        raise Outage(f"Kafka: {error.args[0].str()}") from error
    for letter in letters:
        found = metadata.get(letter.redrive_topic)
        if found is None or letter.origin.partition not in found.partitions:
            raise NotRedrivable(
                f"{letter.place}: there is no partition {letter.origin.partition} of {letter.redrive_topic}; start the stack with this model first"
            )
