"""The gateway without transactions: outputs are acknowledged, then the offsets are committed. Nothing is lost; what lies in between comes twice.

A bug to be caught, and the peer that the cost of exactly-once is measured against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from benchmarks.faults.bugs import replace
from inference import commit
from runtime.headers import Headers
from runtime.kafka import producer
from runtime.settings import Settings
from runtime.transactions import TransactionLost

FLUSH_SEC = 10.0


class PlainProducer:
    """What the committer asks of a transactional producer, without a transaction."""

    def __init__(self, settings: Settings, _transactional_id: str, **overrides: Any) -> None:
        self.source: Any = None
        """Whose consumer commits the offsets."""
        # One callback for all: one a record would be a cost that the transactional producer has not.
        self._producer = producer(settings, **{**overrides, "on_delivery": self._delivered})
        self._partitions: dict[str, int] = {}
        self._places: list[TopicPartition] = []
        self._failure: KafkaError | None = None

    def begin(self) -> None:
        """Nothing is opened."""
        self._places, self._failure = [], None

    def produce(self, topic: str, value: bytes | None, key: bytes | None = None, headers: Headers | None = None,
                partition: int = -1, timestamp_ms: int = 0) -> None:  # fmt: skip
        """Send one record; waits while the local queue is full."""
        while True:
            try:
                self._producer.produce(topic, value, key, partition, None, None, timestamp_ms, headers)
                return
            except BufferError:
                self._producer.poll(0.1)

    def produce_run(
        self, topic: str, values: Sequence[bytes], keys: Sequence[bytes | None], partition: int
    ) -> None:
        """Send records without headers, in order."""
        produce = self._producer.produce
        for value, key in zip(values, keys, strict=True):
            try:
                produce(topic, value, key, partition)
            except BufferError:
                self.produce(topic, value, key, None, partition)

    def partitions(self, topic: str) -> int:
        """How many `topic` has."""
        if topic not in self._partitions:
            self._partitions[topic] = len(
                self._producer.list_topics(topic, FLUSH_SEC).topics[topic].partitions
            )
        return self._partitions[topic]

    def poll(self) -> None:
        """Serve delivery reports."""
        self._producer.poll(0)

    def send_offsets(self, places: list[TopicPartition], _group_metadata: object) -> None:
        """Remember what is to be committed once all is acknowledged."""
        self._places = places

    def commit(self) -> None:
        """Wait for the acknowledgements, then commit the offsets.

        Raises:
            TransactionLost: either failed; what was sent stays.
        """
        if self._producer.flush(FLUSH_SEC) or self._failure is not None:
            raise TransactionLost(f"not delivered: {self._failure or 'no answer'}")
        try:
            if self._places:
                self.source._client.commit(offsets=self._places, asynchronous=False)
        except KafkaException as error:
            raise TransactionLost(f"not committed: {error.args[0].str()}") from error

    def close(self) -> None:
        """Let go."""
        self._producer.flush(FLUSH_SEC)

    def _delivered(self, error: KafkaError | None, _message: object) -> None:
        if error is not None:
            self._failure = error


def apply() -> None:
    """Give the committer a plain producer, and that the consumer."""

    def made(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        self._producer.source = self._source

    replace(commit, "TransactionalProducer", PlainProducer)
    original = replace(commit.Committer, "__init__", made)
