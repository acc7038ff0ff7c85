"""An idempotent producer that knows where each of its records came to lie, and outlives its client.

librdkafka's client may deliver nothing any more once the broker has come back (seen once in some thousands of faults, through three further
restarts). Then another one takes its place: it looks what of the unacknowledged records the broker has, which lie in each partition in the
order in which they were sent, and sends the others.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message

from runtime.headers import Headers
from runtime.kafka import producer
from runtime.positions import Place
from runtime.reader import TopicReader
from runtime.settings import Settings
from schemas.errors import Outage

REPLACE_SEC: Final = 60.0
"""Nothing is acknowledged for so long, twice what a fault keeps the broker away: the client is stuck."""
STUCK_SEC: Final = 240.0
"""Others do not help either."""
SETTLE_SEC: Final = 2.0
"""What a client had under way when it ended is there after this."""
_FOREVER: Final[dict[str, Any]] = {
    # A record must never be given up: what the broker has would be unknown.
    "message.timeout.ms": 0, "linger.ms": 10, "acks": "all", "reconnect.backoff.max.ms": 500,
}  # fmt: skip


class Undelivered(Exception):
    """The broker did not take what was sent: nobody knows any longer what is there."""


class Record(NamedTuple):
    """One to be sent."""

    topic: str
    value: bytes
    key: bytes
    partition: int
    at_ms: int
    headers: Headers | None
    lies: Callable[[int], None]
    """Hears its offset."""


class Acknowledged:
    """Where records lie that the broker has acknowledged.

    A broker that had taken some before it was killed, and is sent them again, says only that it has them, and not where. But those of a
    partition are acknowledged in the order in which they lie there. Nor is the timestamp in such an acknowledgement the record's: it is the
    newest of its batch. So records are given theirs when they are sent.
    """

    def __init__(self) -> None:
        self._following: dict[Place, int] = {}

    def begin_anew(self, topic: str) -> None:
        """`topic` was deleted and made again."""
        self._following = {place: offset for place, offset in self._following.items() if place[0] != topic}

    def following(self, place: Place) -> int:
        """Behind the last record that is known to lie there."""
        return self._following.get(place, 0)

    def offset(self, message: Message) -> int:
        """Of each acknowledged record, asked once and in the order of the acknowledgements."""
        place = message.topic() or "", message.partition() or 0
        told = message.offset()
        offset = self.following(place) if told is None else told
        self._following[place] = offset + 1
        return offset


class Sender:
    """Sends, in one thread."""

    def __init__(self, settings: Settings, on_replace: Callable[[str], None] = lambda _: None) -> None:
        """`on_replace` hears why another client takes over."""
        self._settings, self._on_replace = settings, on_replace
        self._acknowledged = Acknowledged()
        self._pending: dict[Place, deque[Record]] = {}
        """Sent and not acknowledged, in the order of sending."""
        self.unacknowledged = 0
        self._failed: KafkaError | None = None
        self._moved_sec = self._began_sec = time.monotonic()
        """When something was acknowledged last, or nothing was to be; and when the client began."""
        self._client = self._made()

    def send(self, record: Record) -> None:
        """Waits while the client's queue is full."""
        self._pending.setdefault((record.topic, record.partition), deque()).append(record)
        self.unacknowledged += 1
        self._produce(record)

    def poll(self, timeout_sec: float) -> None:
        """Hear what was acknowledged.

        Raises:
            Undelivered: a record was refused, or none is taken any more.
        """
        before = self.unacknowledged
        self._client.poll(timeout_sec)
        if self._failed is not None:
            raise Undelivered(self._failed.str())
        now_sec = time.monotonic()
        if not before or self.unacknowledged < before:
            self._moved_sec = self._began_sec = now_sec
        elif now_sec > self._moved_sec + STUCK_SEC:
            raise Undelivered(f"none of {self.unacknowledged} records in {STUCK_SEC:.0f} s")
        elif now_sec > self._began_sec + REPLACE_SEC:
            self._replace()

    def flush(self) -> None:
        """Until everything is acknowledged. Raises as `poll`."""
        while self.unacknowledged:
            self.poll(0.1)

    def rest(self) -> None:
        """Nothing was to be sent for a while."""
        self._moved_sec = self._began_sec = time.monotonic()

    def begin_anew(self, topic: str) -> None:
        """`topic` was deleted and made again; everything was acknowledged before."""
        self._acknowledged.begin_anew(topic)

    def _made(self) -> Any:
        client = producer(self._settings, **_FOREVER)
        self._on_delivery = functools.partial(self._told, client)
        return client

    def _produce(self, record: Record) -> None:
        while True:
            try:
                self._client.produce(
                    record.topic, record.value, record.key, record.partition, on_delivery=self._on_delivery,
                    timestamp=record.at_ms, headers=record.headers,
                )  # fmt: skip
                return
            except BufferError:
                self._client.poll(0.1)

    def _told(self, client: object, error: KafkaError | None, message: Message) -> None:
        if client is not self._client:
            return
        if error is not None:
            self._failed = error
        else:
            self._took(message)

    def _took(self, message: Message) -> Record:
        """The first that is pending of its partition lies where `message` says."""
        record = self._pending[message.topic() or "", message.partition() or 0].popleft()
        self.unacknowledged -= 1
        record.lies(self._acknowledged.offset(message))
        return record

    def _replace(self) -> None:
        """Leave the client, take over what the broker has of it, and send the rest by another.

        Raises:
            Undelivered: the broker does not tell.
        """
        self._on_replace(f"none of {self.unacknowledged} records was acknowledged in {REPLACE_SEC:.0f} s")
        left, self._client = self._client, self._made()
        left.purge()
        left.poll(0)
        while True:
            try:
                self._take_over()
                break
            except (Outage, KafkaException) as error:
                if time.monotonic() > self._moved_sec + STUCK_SEC:
                    raise Undelivered(f"the broker does not tell what it has: {error}") from error
        for record in [record for pending in self._pending.values() for record in pending]:
            self._produce(record)
        self._began_sec = time.monotonic()

    def _take_over(self) -> None:
        places = [place for place, pending in self._pending.items() if pending]
        reader = TopicReader(self._settings, "fault-load")
        try:
            reader.bounds(places)  # the broker is there: what the client had under way comes to it now
            time.sleep(SETTLE_SEC)
            ends = {place: bounds.end for place, bounds in reader.bounds(places).items()}
            reader.begin({place: self._acknowledged.following(place) for place in places})
            for message in reader.read_to(ends):
                record = self._took(message)
                if message.value() != record.value:
                    where = f"{record.topic}:{record.partition}:{message.offset()}"
                    raise Undelivered(f"{where} holds another record than the one that was sent next")
        finally:
            reader.close()
