"""Tells people that a partition halted: an event on `alerts`, sent until the broker has it."""

from __future__ import annotations

import msgspec
from confluent_kafka import KafkaError, Message

from runtime.kafka import producer
from runtime.settings import Settings
from schemas.events import Alert
from schemas.identity import name_id
from schemas.topics import ALERTS
from streams.sink.partition import Partition


class Alerts:
    """The sink's alerts. Not transactional: an alert has a deterministic id, so a repeat counts once."""

    def __init__(self, settings: Settings) -> None:
        self._producer = producer(settings)
        self._unsent: list[Alert] = []

    def partition_halted(self, partition: Partition, now_ms: int) -> None:
        """Partition `partition` halted, for the reason it says."""
        place = f"{partition.topic}:{partition.number}"
        alert = Alert(
            event_id=str(name_id("partition_halted", partition.source.topic_id, place, partition.committed, partition.halted)),
            model=partition.model,
            at_ms=now_ms,
            kind="partition_halted",
            severity="severe",
            subject=place,
            version="",
            message=f"the sink halted {place}: {partition.halted}",
            evidence={
                "topic_id": str(partition.source.topic_id),
                "committed_offset": partition.committed,
                "table": partition.table.name,
                "reason": partition.halted,
            },
        )  # fmt: skip
        self._unsent.append(alert)

    def send(self) -> None:
        """Send what is unsent and serve delivery reports; never waits."""
        while self._unsent:
            alert = self._unsent.pop()

            def delivered(error: KafkaError | None, _message: Message, alert: Alert = alert) -> None:
                if error is not None:
                    self._unsent.append(alert)

            self._producer.produce(
                ALERTS.name, msgspec.json.encode(alert), key=alert.model.encode(), on_delivery=delivered
            )
        self._producer.poll(0)

    def close(self, timeout_sec: float) -> None:
        """Send what is left, for at most `timeout_sec`."""
        self.send()
        self._producer.flush(timeout_sec)
