"""Which orders were answered: a full read of `candidates`, which is small and kept for ever."""

from __future__ import annotations

import logging

import msgspec

from runtime.reader import TopicReader
from runtime.settings import Settings
from schemas.topics import CANDIDATES

log = logging.getLogger(__name__)


class _Answer(msgspec.Struct):
    """What is needed of a candidate."""

    retrain_id: str
    report: dict[str, msgspec.Raw] = {}


def answered(settings: Settings) -> set[str]:
    """`identity` of every order that has a committed candidate.

    Raises:
        Outage: the topic could not be read to its end in time.
    """
    reader = TopicReader(settings, "answered", **{"fetch.wait.max.ms": 10})
    found: set[str] = set()
    try:
        for message in reader.whole(reader.places(CANDIDATES.name)):
            try:
                answer = msgspec.json.decode(message.value() or b"", type=_Answer)
                raw = answer.report.get("dedupe_key")
                found |= identity(answer.retrain_id, msgspec.json.decode(raw, type=str) if raw else "")
            except msgspec.MsgspecError as error:
                # Somebody else's: it answers nothing.
                log.warning("%s at offset %s is no candidate: %s", CANDIDATES.name, message.offset(), error)
    finally:
        reader.close()
    return found


def identity(retrain_id: str, dedupe_key: str) -> set[str]:
    """What makes two orders one: the id, or the dedupe key."""
    return {f"id {retrain_id}"} | ({f"key {dedupe_key}"} if dedupe_key else set())
