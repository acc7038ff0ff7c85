"""Taking partitions over: from where the group stands, with what the one before us was inserting."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TypeAlias

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from runtime.offsets import committed
from runtime.topics import Topics
from schemas.errors import Outage
from schemas.spec import ModelSpec
from streams.sink.partition import Partition
from streams.sink.plan import decode_plan
from streams.sink.tables import Source, Table

Targets: TypeAlias = Mapping[str, tuple[Table, ModelSpec | None]]
"""Topic → the table that its records go to, and the model that it belongs to."""


def take_over(
    client: Consumer, topics: Topics, targets: Targets, places: list[TopicPartition]
) -> list[tuple[Partition, TopicPartition]]:
    """Each partition as it begins, and where it is to be read from. One whose plan cannot be followed is halted.

    Raises:
        KafkaException, Outage: Kafka does not tell; nothing has happened.
    """
    ids = topics.ids({place.topic for place in places})
    found = committed(client, places)
    for place in found:
        if place.topic not in ids:
            raise Outage(f"topic {place.topic} is assigned and does not exist")
    return [_begin(place, ids[place.topic], *targets[place.topic]) for place in found]


def _begin(
    place: TopicPartition, topic_id: uuid.UUID, table: Table, spec: ModelSpec | None
) -> tuple[Partition, TopicPartition]:
    topic, number = place.topic, place.partition
    start = place.offset if place.offset >= 0 else None
    halted, plan = "", None
    try:
        plan = decode_plan(place.metadata) if start is not None else None
    except ValueError as error:
        halted = str(error)
    if plan is not None and plan.topic_id != topic_id:
        halted = f"the plan is for topic {plan.topic_id}, but {topic} is {topic_id} now: it was recreated"
    partition = Partition(topic, number, table, Source(topic_id, spec), start, plan)
    if halted:
        partition.halt(halted)
    return partition, TopicPartition(topic, number, OFFSET_BEGINNING if start is None else start)
