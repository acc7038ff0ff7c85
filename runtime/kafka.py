"""Kafka clients as every stage uses them: one place for the settings that the delivery rules rest on."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from runtime.settings import Settings
from schemas.errors import Fenced, Outage
from schemas.topics import COPY_BYTES, REQUESTS, Topic

log = logging.getLogger("librdkafka")
_Callback = TypeVar("_Callback", bound=Callable[..., None])

SESSION_TIMEOUT_MS: Final = 10_000
"""Longer than a broker takes to restart: a static member whose session ends meanwhile joins again under another id, and librdkafka takes the
refusal of a request that it had under way under the old one for being fenced, which ends the process."""
TRANSACTION_TIMEOUT_MS: Final = 5000
REQUEST_TIMEOUT_SEC: Final = 10.0
_CONNECTION: Final[dict[str, Any]] = {
    "socket.nagle.disable": True,
    "log.connection.close": False,
    # A broker that restarts is found within a second; one that stays away is asked once a second, not ten times.
    "reconnect.backoff.ms": 100,
    "reconnect.backoff.max.ms": 1000,
}


def gather(wait_ms: int) -> dict[str, Any]:
    """Consumer settings: at a low rate a fetch waits this long for company, instead of being a request for each record."""
    return {"fetch.min.bytes": 64 * 1024, "fetch.wait.max.ms": wait_ms}


def consumer(settings: Settings, group: str, *, member: str = "", **overrides: Any) -> Consumer:
    """A read-committed consumer that never commits by itself.

    Where Kafka has nothing at an offset it goes to the earliest without a word. Who answers for every record overrides `auto.offset.reset`
    with `error` (`runtime.gaps`).

    `member` (unique in the group, stable across restarts) makes the membership static: a restart within the session time-out
    moves no partition.
    """
    config: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_bootstrap,
        "group.id": group,
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "session.timeout.ms": SESSION_TIMEOUT_MS,
        "heartbeat.interval.ms": 1000,
        "max.poll.interval.ms": 120_000,
        "fetch.wait.max.ms": 100,
        "fetch.error.backoff.ms": 50,
        # The default of a second is paid whenever enough was read ahead: it bounds a reader to as many records a second as it reads ahead.
        "fetch.queue.backoff.ms": 5,
        "topic.metadata.refresh.interval.ms": 5000,
        **_CONNECTION,
        **({"group.instance.id": f"{group}-{member}"} if member else {}),
        **overrides,
    }
    return Consumer(config, logger=log)


def callback(function: _Callback) -> _Callback:
    """For callbacks that a client calls while it is polled: an error in one comes out of the poll as the exception that it was.

    confluent-kafka hands on an error of its own calls (such as `committed`) as a bare `KafkaError`, which is no exception: no `except`
    sees it, and it ends the thread without a word. One that a handler has seen is handed on whole.
    """

    @wraps(function)
    def whole(*arguments: Any, **named: Any) -> None:
        try:
            function(*arguments, **named)
        except KafkaException:  # noqa: TRY203  the handler is what makes it whole
            raise

    return whole  # type: ignore[return-value]  # it takes and returns what `function` does


def producer(settings: Settings, **overrides: Any) -> Producer:
    """An idempotent producer, without transactions."""
    return Producer(
        {
            "bootstrap.servers": settings.kafka_bootstrap,
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 5,
            "message.max.bytes": COPY_BYTES,
            "queue.buffering.max.messages": 1_000_000,
            **_CONNECTION,
            **overrides,
        },
        logger=log,
    )


def admin(settings: Settings) -> AdminClient:
    """An admin client."""
    return AdminClient({"bootstrap.servers": settings.kafka_bootstrap, **_CONNECTION}, logger=log)


class LastingAdmin:
    """An admin client for whoever asks again and again: replaced when it fails. One that saw the broker go, or began before it, may look for the
    controller for ever, or hold to what has passed and be refused for ever. Threads may share it: at worst each makes a client, and one is dropped."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: AdminClient | None = None

    @contextmanager
    def asking(self, what: str) -> Iterator[AdminClient]:
        """The client, to ask for `what` (as in "Kafka does not tell ...").

        Raises:
            Outage: the broker gave no good answer.
        """
        client = self._client = self._client or admin(self._settings)
        try:
            yield client
        except (KafkaException, TimeoutError, Outage) as error:
            self._client = None
            if isinstance(error, Outage):
                raise
            why = error.args[0].str() if isinstance(error, KafkaException) else "no answer in time"
            raise Outage(f"Kafka does not tell {what}: {why}") from error


def create_topics(
    client: AdminClient, topics: Iterable[tuple[str, Topic, int]], replication: int = 1
) -> list[str]:
    """Create what is missing of (name, topic, partitions) and return the new ones' names.

    Topics of requests come last, in a call of their own: a request must never find its answer's topic missing.
    """
    created = []
    wanted = [(topic.name == REQUESTS.name, name, topic, partitions) for name, topic, partitions in topics]
    for last in (False, True):
        news = [
            NewTopic(name, num_partitions=partitions, replication_factor=replication, config=topic.config())
            for requests, name, topic, partitions in wanted
            if requests is last
        ]
        futures = client.create_topics(news, operation_timeout=REQUEST_TIMEOUT_SEC) if news else {}
        for name, future in futures.items():
            try:
                future.result()
                created.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
    return created


def raise_if_fenced(error: KafkaError, member: str) -> None:
    """Stop whose static membership another process has taken over. Two that each come back would fence each other for ever.

    Raises:
        Fenced: `error` says so.
    """
    # librdkafka's consumer calls the error fatal and keeps the code that made it so for itself: only the text tells it.
    lost_to_another = error.code() == KafkaError._FATAL and "fenced" in error.str()
    if lost_to_another or error.code() in (KafkaError._FENCED, KafkaError.FENCED_INSTANCE_ID):
        raise Fenced(f"{member}: another process has taken over: {error.str()}")


def raise_if_fatal(error: Exception) -> None:
    """Raise `error` again if the client that gave it will never work again: a process with a new one does."""
    if isinstance(error, KafkaException) and error.args[0].fatal():
        raise error


_PASSING: Final = frozenset(
    getattr(KafkaError, name)
    for name in (
        "_ALL_BROKERS_DOWN", "_TRANSPORT", "_RESOLVE", "_TIMED_OUT", "_MAX_POLL_EXCEEDED", "_WAIT_COORD", "_UNKNOWN_TOPIC",
        "_UNKNOWN_PARTITION",
        "NOT_LEADER_FOR_PARTITION", "LEADER_NOT_AVAILABLE", "BROKER_NOT_AVAILABLE", "REPLICA_NOT_AVAILABLE", "REQUEST_TIMED_OUT",
        "NETWORK_EXCEPTION", "COORDINATOR_LOAD_IN_PROGRESS", "COORDINATOR_NOT_AVAILABLE", "NOT_COORDINATOR",
        "REBALANCE_IN_PROGRESS", "OFFSET_NOT_AVAILABLE", "FENCED_LEADER_EPOCH", "UNKNOWN_LEADER_EPOCH", "KAFKA_STORAGE_ERROR",
        "UNKNOWN_TOPIC_OR_PART", "UNKNOWN_TOPIC_ID",
    )
    if hasattr(KafkaError, name)
)  # fmt: skip
"""What a consumer tells of and overcomes by itself. `retriable()` does not say it: of a polled message's error it is always false."""


def judge(error: KafkaError, member: str) -> None:
    """Log what a polled error tells of if the client overcomes it, and raise otherwise.

    Raises:
        Fenced: another process has this static membership.
        KafkaException: records may be missing from here on; a new session is needed.
    """
    raise_if_fenced(error, member)
    if error.fatal() or error.code() not in _PASSING:
        raise KafkaException(error)
    log.warning("%s: %s", member, error.str())


def topic_ids(client: AdminClient, names: Iterable[str]) -> dict[str, uuid.UUID]:
    """Kafka's own UUID of each topic that exists.

    Raises:
        Outage: the broker did not answer.
    """
    found: dict[str, uuid.UUID] = {}
    futures = client.describe_topics(TopicCollection(list(names)), request_timeout=REQUEST_TIMEOUT_SEC)
    for name, future in futures.items():
        try:
            found[name] = _uuid(future.result().topic_id)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise Outage(f"Kafka does not describe topic {name}: {error.args[0].str()}") from error
    return found


def _uuid(kafka_uuid: Any) -> uuid.UUID:
    """confluent_kafka's Uuid (two signed 64-bit halves) as Python's."""
    high = kafka_uuid.get_most_significant_bits() & (1 << 64) - 1
    low = kafka_uuid.get_least_significant_bits() & (1 << 64) - 1
    return uuid.UUID(int=high << 64 | low)
