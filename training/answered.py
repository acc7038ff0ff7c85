"""Which orders were answered: a full read of `candidates`, which is small and kept for ever."""

from __future__ import annotations

import time
import uuid
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from runtime.kafka import REQUEST_TIMEOUT_SEC, consumer
from runtime.settings import Settings
from schemas.errors import Outage
from schemas.topics import CANDIDATES

_TIMEOUT_SEC: Final = 60.0
_BATCH: Final = 1000


class _Answer(msgspec.Struct):
    """What is needed of a candidate."""

    retrain_id: str
    report: dict[str, msgspec.Raw] = {}


def answered(settings: Settings) -> set[str]:
    """`identity` of every order that has a committed candidate.

    Raises:
        Outage: the topic could not be read to its end in time.
    """
    overrides: dict[str, Any] = {"enable.partition.eof": True, "fetch.wait.max.ms": 10}
    client = consumer(settings, f"answered-{uuid.uuid4()}", **overrides)
    try:
        topic = client.list_topics(CANDIDATES.name, timeout=REQUEST_TIMEOUT_SEC).topics[CANDIDATES.name]
        unread = set(topic.partitions)
        client.assign([TopicPartition(CANDIDATES.name, partition, 0) for partition in unread])
        found: set[str] = set()
        deadline = time.monotonic() + _TIMEOUT_SEC
        while unread:
            if time.monotonic() > deadline:
                raise Outage(f"topic {CANDIDATES.name}: not read to its end within {_TIMEOUT_SEC:.0f} s")
            for message in client.consume(_BATCH, 0.2):
                error = message.error()
                if error is None:
                    answer = msgspec.json.decode(message.value() or b"{}", type=_Answer)
                    raw = answer.report.get("dedupe_key")
                    found |= identity(answer.retrain_id, msgspec.json.decode(raw, type=str) if raw else "")
                elif error.code() == KafkaError._PARTITION_EOF:
                    unread.discard(message.partition() or 0)
                else:
                    raise KafkaException(error)
        return found
    finally:
        client.close()


def identity(retrain_id: str, dedupe_key: str) -> set[str]:
    """What makes two orders one: the id, or the dedupe key."""
    return {f"id {retrain_id}"} | ({f"key {dedupe_key}"} if dedupe_key else set())
