"""A transactional echo with offsets: what Kafka alone costs a stage that reads, writes and commits exactly once.

`python -m benchmarks.echo REQUESTS PREDICTIONS GROUP VALUE_BYTES`.
"""

from __future__ import annotations

import signal
import sys
import threading

from confluent_kafka import TopicPartition

from runtime.kafka import consumer, gather
from runtime.settings import load_settings
from runtime.transactions import TransactionalProducer


def main() -> int:
    """Until SIGTERM."""
    requests, predictions, group, size = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    settings = load_settings()
    source = consumer(settings, group, **gather(wait_ms=10))
    source.subscribe([requests])
    target = TransactionalProducer(settings, group, **{"delivery.report.only.error": True, "linger.ms": 0.5})
    value = b"x" * int(size)
    while not stop.is_set():
        messages = source.consume(1, 0.1)
        if not messages:
            continue
        messages += source.consume(4095, 0.0)
        target.begin()
        for message in messages:
            target.produce(predictions, value, message.key(), partition=message.partition() or 0)
        newest = {message.partition() or 0: (message.offset() or 0) + 1 for message in messages}
        places = [TopicPartition(requests, partition, offset) for partition, offset in newest.items()]
        target.send_offsets(places, source.consumer_group_metadata())
        target.commit()
    source.close()
    target.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
