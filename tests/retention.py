"""What retention does in its own time."""

from __future__ import annotations

from confluent_kafka import TopicPartition

from runtime.kafka import admin
from runtime.positions import Place
from runtime.settings import Settings


def drop_before(settings: Settings, place: Place, offset: int) -> None:
    """Kafka drops what lies before this offset."""
    client, kept = admin(settings), TopicPartition(*place, offset)
    client.delete_records([kept])[kept].result(10)
