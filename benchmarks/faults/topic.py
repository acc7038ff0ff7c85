"""Reading one partition of a topic to its end, as a read-committed reader sees it; and ids as ClickHouse hands them out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from runtime.kafka import judge

BATCH: Final = 10_000
PATIENCE_SEC: Final = 60.0


def partition_records(reader: Consumer, topic: str, partition: int) -> Iterator[list[Message]]:
    """All committed records in batches. `reader` has `enable.partition.eof` and no other assignment.

    Raises:
        KafkaException: the broker refuses.
        TimeoutError: nothing came for a minute, and not the end either.
    """
    reader.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])
    heard = time.monotonic()
    try:
        while True:
            messages = reader.consume(BATCH, 0.2)
            records: list[Message] = []
            ended = False
            for message in messages:
                error = message.error()
                if (message.topic(), message.partition()) != (topic, partition):
                    continue  # the end of what was read before, told late
                if error is None:
                    records.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended = True
                else:
                    judge(error, "account")
            if records:
                yield records
            if ended:
                return
            if messages:
                heard = time.monotonic()
            elif time.monotonic() > heard + PATIENCE_SEC:
                raise TimeoutError(f"{topic}-{partition} cannot be read to its end")
    finally:
        reader.unassign()


def id_bytes(chunk: Any) -> bytes:
    """A UUID column's bytes: Arrow's extension type over 16-byte values, without nulls."""
    storage = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
    data = storage.buffers()[1].to_pybytes()
    start = storage.offset * 16
    return bytes(data[start : start + len(storage) * 16])
