"""The gateway commits offsets after the transaction instead of in it: who dies in between answers everything in it again."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaException, TopicPartition

from benchmarks.faults.bugs import replace
from inference import commit
from runtime.transactions import TransactionalProducer, TransactionLost


class Apart(TransactionalProducer):
    """Remembers the offsets, and has the consumer commit them."""

    source: Any = None
    places: list[TopicPartition]

    def send_offsets(self, places: list[TopicPartition], _group_metadata: object) -> None:
        """Later."""
        self.places = places

    def commit(self) -> None:
        """The outputs, and then the offsets."""
        super().commit()
        try:
            self.source._client.commit(offsets=self.places, asynchronous=False)
        except KafkaException as error:
            raise TransactionLost(f"offsets not committed: {error.args[0].str()}") from error


def apply() -> None:
    """Give the committer such a producer, and that the consumer."""

    def made(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        self._producer.source = self._source

    replace(commit, "TransactionalProducer", Apart)
    original = replace(commit.Committer, "__init__", made)
