"""The write-ahead plan: what the sink is about to insert, kept in Kafka beside the offset it starts from."""

from __future__ import annotations

import uuid

import msgspec


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata of a committed offset `first`: the records from `first` up to `end` hold `rows` rows and are being inserted.

    An empty plan (`end == first`, no rows) says that everything below `first` is in ClickHouse and nothing is under way.
    """

    topic_id: uuid.UUID
    """Kafka's UUID of the topic: offsets of a recreated topic mean other records."""
    end: int
    """Next offset after the range."""
    rows: int


def encode_plan(plan: Plan) -> str:
    """The commit's metadata (about 80 characters; a broker takes 4096)."""
    return msgspec.json.encode(plan).decode()


def decode_plan(metadata: str | None) -> Plan | None:
    """The plan in a commit's metadata; None if there is none: a person moved the group's offset.

    Raises:
        ValueError: the metadata is not a plan.

    >>> decode_plan("") is None
    True
    """
    if not metadata:
        return None
    try:
        return msgspec.json.decode(metadata, type=Plan)
    except msgspec.DecodeError as error:
        raise ValueError(f"the commit's metadata is no plan: {metadata[:80]!r} ({error})") from None
