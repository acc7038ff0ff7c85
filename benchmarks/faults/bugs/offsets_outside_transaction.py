"""The gateway commits offsets by a timer, as consumers do by themselves, and not in the transaction: what a dead one had answered since comes again."""

from __future__ import annotations

import time
from typing import Any, Final

from confluent_kafka import KafkaException, TopicPartition

from benchmarks.faults.bugs import replace
from inference import commit
from runtime.transactions import TransactionalProducer, TransactionLost

EVERY_SEC: Final = 1.0


class Apart(TransactionalProducer):
    """Gathers the offsets, and has the consumer commit them now and then."""

    source: Any = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._places: dict[tuple[str, int], TopicPartition] = {}
        self._committed_sec = 0.0

    def send_offsets(self, places: list[TopicPartition], _group_metadata: object) -> None:
        """Later."""
        self._places |= {(place.topic, place.partition): place for place in places}

    def commit(self) -> None:
        """The outputs; the offsets, if it is time."""
        super().commit()
        if not self._places or time.monotonic() < self._committed_sec + EVERY_SEC:
            return
        try:
            self.source._client.commit(offsets=list(self._places.values()), asynchronous=True)
        except KafkaException as error:
            raise TransactionLost(f"offsets not committed: {error.args[0].str()}") from error
        self._places, self._committed_sec = {}, time.monotonic()


def apply() -> None:
    """Give the committer such a producer, and that the consumer."""

    def made(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        self._producer.source = self._source

    replace(commit, "TransactionalProducer", Apart)
    original = replace(commit.Committer, "__init__", made)
