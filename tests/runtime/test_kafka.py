"""The clients that every stage uses."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from confluent_kafka import KafkaException, TopicPartition

from compose.embedded.ports import HOST, free_ports
from runtime.kafka import callback, consumer
from runtime.settings import Settings


def test_an_error_in_a_callback_comes_out_of_the_poll_as_an_exception() -> None:
    (nobody,) = free_ports(1)

    closing = Event()

    @callback
    def ask(_: object) -> None:
        if not closing.is_set():  # a client that closes calls back, too
            client.get_watermark_offsets(TopicPartition("topic", 0), timeout=0.05)

    asking: dict[str, Any] = {"stats_cb": ask, "statistics.interval.ms": 1000, "log_level": 0}
    client = consumer(Settings(kafka_bootstrap=f"{HOST}:{nobody}"), "group", **asking)
    with ThreadPoolExecutor(1) as thread, pytest.raises(KafkaException):
        thread.submit(client.consume, 1, 5.0).result(10)
    closing.set()
    client.close()
