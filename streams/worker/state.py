"""How a processor's work on one source partition survives: outputs, state and the next offset, in one transaction.

1. On first use the partition's transactional id is initialised: whoever held the partition before is fenced, and what it left open is
   aborted. Only then is the state read, read-committed, so that it cannot change any more.
2. Events below the state's offset are skipped: their outputs and their traces in the state were committed together.
3. `drain` takes what came since; `write` writes it in one transaction. If that is lost, nobody knows whether it was committed: the
   state says so, and if not, the same outputs are written again.
4. Only after that is the offset committed to the group (`app`), where it serves as a place to start and for lag, not for exactness.

State lies in the compacted topic `state`, one partition of it for each source partition number: under
`<processor>/<topic>/<partition>` the offset and the processor's small state, under `…/<entry>` what grows, entry by entry, so
that a save writes what changed and not all there is.
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple, Protocol

import msgspec
from confluent_kafka import KafkaException

from runtime.compacted import CompactedTopic
from runtime.kafka import REQUEST_TIMEOUT_SEC, consumer
from runtime.positions import PROBING, next_record
from runtime.service import Stop
from runtime.settings import Settings
from runtime.telemetry import counter
from runtime.transactions import TransactionalProducer, TransactionLost
from schemas.errors import Fenced, Outage
from schemas.topics import STATE

log = logging.getLogger(__name__)

RETRY_SEC: Final = 0.5


class Record(NamedTuple):
    """One output."""

    topic: str
    key: bytes
    value: bytes


class Drained(NamedTuple):
    """What one save writes, apart from the offset."""

    records: list[Record]
    own: bytes
    """The processor's small state, whole."""
    entries: dict[str, bytes | None]
    """Entries that changed; None removes one."""


class Processor(Protocol):
    """Computes; never waits, never talks to Kafka."""

    name: str

    def restore(self, own: bytes, entries: dict[str, bytes]) -> None:
        """Go on from a saved state; called once, before any event, if there is one."""

    def apply(self, value: bytes) -> None:
        """One event. May raise nothing that an event could cause."""

    @property
    def size(self) -> int:
        """Roughly how many records a save would write; bounds what is held between saves."""

    def drain(self, next_offset: int) -> Drained:
        """Outputs and changes since the last call; the caller writes them before anything else it drains."""


class Save(NamedTuple):
    """A save under way."""

    next_offset: int
    drained: Drained


class _Saved(msgspec.Struct, frozen=True):
    """The value under the partition's own key."""

    next_offset: int
    own: bytes


class SourcePartition:
    """A processor on one source partition. `open` and `write` wait for Kafka: call them in a thread, one at a time; the rest is the
    event loop's."""

    def __init__(
        self, settings: Settings, processor: Processor, topic: str, partition: int, stop: Stop
    ) -> None:
        self.processor = processor
        self.topic, self.partition = topic, partition
        self.next_offset = 0
        """Next event to apply."""
        self.saved_offset = 0
        """Next offset as it stands in `state`."""
        self._settings = settings
        self._stop = stop
        self._key = f"{processor.name}/{topic}/{partition}"
        self._home = partition % STATE.partitions
        self._producer: TransactionalProducer | None = None
        self._failed = False
        """Whether a save could not be written. What was drained for it is gone, and the state may be another's: nothing may be written upon that."""

    def open(self) -> None:
        """Fence the predecessor and go on from where it had committed.

        Raises:
            Outage: Kafka is away.
        """
        self._producer = TransactionalProducer(
            self._settings, self._key.replace("/", "-"), **{"queue.buffering.max.kbytes": 65536}
        )
        entries = self._read()
        own = entries.pop("", None)
        if own is not None:
            saved = msgspec.msgpack.decode(own, type=_Saved)
            self.next_offset = self.saved_offset = saved.next_offset
            self.processor.restore(saved.own, entries)

    def passes_over(self, offset: int) -> bool:
        """Whether an event lies between the state and the one at `offset`. Markers and aborted records do not count, so offsets alone do not tell.

        Raises:
            Outage: Kafka is away.
        """
        if offset <= self.next_offset:
            return False
        client = consumer(self._settings, f"look-{self._key}", **PROBING)
        try:
            first = next_record(
                client, (self.topic, self.partition), self.next_offset, within_sec=REQUEST_TIMEOUT_SEC
            )
        except KafkaException as error:
            raise Outage(f"{self._key}: {error.args[0].str()}") from error
        finally:
            client.close()
        return not isinstance(first, int) and (first.offset() or 0) < offset

    def apply(self, offset: int, value: bytes) -> None:
        """Apply an event, unless its effect is in the state already."""
        if offset >= self.next_offset:
            self.processor.apply(value)
            self.next_offset = offset + 1

    def drain(self) -> Save | None:
        """What is to be written now; None if nothing came."""
        if self.next_offset == self.saved_offset:
            return None
        return Save(self.next_offset, self.processor.drain(self.next_offset))

    def write(self, save: Save) -> None:
        """Write a save; waits out an absent broker.

        Raises:
            Fenced: another worker has the partition now, or a save before this one failed; nothing of this save is visible, nor will be.
            Outage: Kafka is still away and the service is to stop; the events will come again.
        """
        if self._failed:
            raise Fenced(f"{self._key}: nothing is written after a save that failed")
        self._failed = True
        while True:
            try:
                self._transact(save)
                result = "committed"
            except (TransactionLost, Outage) as error:
                log.warning("%s: %s", self._key, error)
                result = "lost"
            counter("tidemill_transactions_total").labels(self.processor.name, result).inc()
            if result == "committed" or self._was_committed(save):
                self.saved_offset = save.next_offset
                self._failed = False
                return

    def close(self) -> None:
        """Let go; what was not written is dropped and comes again."""
        if self._producer is not None:
            self._producer.close()
            self._producer = None

    def _transact(self, save: Save) -> None:
        producer = self._producer
        if producer is None:
            raise RuntimeError(f"{self._key}: written before it was opened")
        producer.begin()
        for record in save.drained.records:
            producer.produce(record.topic, record.value, record.key)
        for entry, value in save.drained.entries.items():
            producer.produce(STATE.name, value, f"{self._key}/{entry}".encode(), partition=self._home)
        own = msgspec.msgpack.encode(_Saved(save.next_offset, save.drained.own))
        producer.produce(STATE.name, own, self._key.encode(), partition=self._home)
        producer.commit()

    def _was_committed(self, save: Save) -> bool:
        """Whether a lost transaction was committed after all. Waits until Kafka can say.

        Raises:
            Fenced: another worker has saved since: what was lost is not to be written upon that.
        """
        while True:
            try:
                own = self._read().get("")
            except Outage:
                if self._stop.wait(RETRY_SEC):
                    raise
                continue
            there = 0 if own is None else msgspec.msgpack.decode(own, type=_Saved).next_offset
            if there not in (self.saved_offset, save.next_offset):
                raise Fenced(f"{self._key}: another worker has saved up to {there}")
            return there == save.next_offset

    def _read(self) -> dict[str, bytes]:
        """This partition's values in `state`, by entry; "" is its own."""
        topic = CompactedTopic(self._settings, STATE.name, partitions=[self._home])
        try:
            prefix = f"{self._key}/"
            found = {
                key.decode().removeprefix(prefix): value
                for key, value in topic.values.items()
                if key.decode().startswith(prefix)
            }
            own = topic.values.get(self._key.encode())
            return found if own is None else {**found, "": own}
        finally:
            topic.close()
