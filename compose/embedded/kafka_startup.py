"""A cache of loaded and linked classes (JEP 483 and 514) that halves the broker's start, in time and in CPU, and of what methods are
called with (JEP 515), so that the JVM compiles the busy ones at once, not after a minute of load.

It is made once, when the jars are there, from a broker that starts, does for some seconds what the stack asks of one, and stops; the
JVM ignores it when it does not fit.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from compose.embedded import parts
from compose.embedded.kafka import JAVA_OPTIONS, STARTUP_CACHE, Kafka, KafkaProbe
from compose.embedded.ports import HOST, free_ports
from compose.embedded.process import NotReady

TIMEOUT_SEC = 60.0
EXERCISE_SEC = 15.0
RECORDS = 50
"""A transaction."""
PARTITIONS = 4


def make(say: Callable[[str], None]) -> None:
    """Write the cache beside the jars, whole or not at all. Without it the broker works, and starts slower: said, not raised."""
    cache = parts.path("kafka") / STARTUP_CACHE
    if cache.exists():
        return
    say("Making the broker's start-up cache (half a minute)")
    try:
        _record(cache)
    except (NotReady, OSError, KafkaException, subprocess.TimeoutExpired) as error:
        say(f"  not made ({error}); the broker will start slower")


def _record(cache: Path) -> None:
    port, controller_port = free_ports(2)
    temporary = cache.with_suffix(".tmp")
    with tempfile.TemporaryDirectory(prefix="tidemill-kafka-") as folder:
        kafka = Kafka(
            HOST, port, controller_port, Path(folder), (*JAVA_OPTIONS, f"-XX:AOTCacheOutput={temporary}")
        )
        with (Path(folder) / "log.txt").open("wb") as log:
            broker = subprocess.Popen(kafka.start().argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait_ready(KafkaProbe(f"{HOST}:{port}"))
            _exercise(f"{HOST}:{port}")
            broker.send_signal(signal.SIGTERM)
            broker.wait(TIMEOUT_SEC)  # the JVM writes the cache on its way out
        finally:
            broker.kill()
            broker.wait()
    temporary.rename(cache)


def _wait_ready(probe: KafkaProbe) -> None:
    deadline = time.monotonic() + TIMEOUT_SEC
    while True:
        try:
            probe()
        except NotReady:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _exercise(bootstrap: str) -> None:
    """What every stage does: a group's member reads committed records, and writes as many, with its offsets, in transactions."""
    common: dict[str, Any] = {"bootstrap.servers": bootstrap, "log_level": 0}
    writes: dict[str, Any] = {**common, "enable.idempotence": True, "compression.type": "lz4", "linger.ms": 0}
    topics = [NewTopic(name, PARTITIONS, 1) for name in ("read", "written")]
    admin = AdminClient(common)
    for made in admin.create_topics(topics).values():
        made.result(TIMEOUT_SEC)
    client = Consumer(
        {**common, "group.id": "exercise", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    )
    with closing(client):
        client.subscribe(["read"])
        requests = Producer(writes)
        answers = Producer({**writes, "transactional.id": "exercise"})
        answers.init_transactions(TIMEOUT_SEC)
        deadline = time.monotonic() + EXERCISE_SEC
        while time.monotonic() < deadline:
            for number in range(RECORDS):
                requests.produce("read", bytes(100), partition=number % PARTITIONS)
            requests.flush(TIMEOUT_SEC)
            read = [message for message in client.consume(RECORDS, 1.0) if message.error() is None]
            answers.begin_transaction()
            for message in read:
                answers.produce("written", message.value(), partition=message.partition() or 0)
            ends = {message.partition(): (message.offset() or 0) + 1 for message in read}
            places = [TopicPartition("read", partition or 0, end) for partition, end in ends.items()]
            answers.send_offsets_to_transaction(places, client.consumer_group_metadata(), TIMEOUT_SEC)
            answers.commit_transaction(TIMEOUT_SEC)
