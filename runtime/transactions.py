"""The transactional producer with its error taxonomy (`docs/delivery.md`).

Whatever goes wrong inside a transaction ends in one of two ways:

* `TransactionLost`: nothing of it is visible, or it is unknown whether all of it is. The producer is usable again: destroyed and
  initialised anew, which settles what was open. The caller drops its pending work and goes back to the group's
  committed offsets: they tell which of the two it was.
* `Fenced`: another process initialised this transactional id. The caller stops.

librdkafka does not implement KIP-890's second transaction version, so a time-out of begin, commit or abort is ambiguous and the
producer that saw it must not be used again.

Its `send_offsets_to_transaction` ignores its time-out, and waits for ever if the group's coordinator goes away in the middle of it
(librdkafka issues 5456 and 5511; seen at every kill of a broker under load). So each call is made in a thread that can be left behind.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, Final, TypeAlias
from zlib import crc32

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from runtime.headers import Headers
from runtime.kafka import TRANSACTION_TIMEOUT_MS, producer
from runtime.settings import Settings
from schemas.errors import Fenced, Outage, TidemillError

log = logging.getLogger(__name__)

_FENCING: Final = frozenset(
    {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}
)
_CALL_TIMEOUT_SEC: Final = 3.0
_HUNG_SEC: Final = 2 * _CALL_TIMEOUT_SEC
"""A call that has not come back by then never will."""
_INIT_TIMEOUT_SEC: Final = 30.0
_SLICES: Final = 10


class TransactionLost(TidemillError):
    """Go back to the committed offsets and do the work again."""


class TransactionalProducer:
    """One transactional id's producer; begin → produce … → commit, or lose it. Not thread-safe."""

    def __init__(self, settings: Settings, transactional_id: str, **overrides: Any) -> None:
        self._transactional_id = transactional_id
        self._make: Callable[[], Producer] = lambda: producer(
            settings,
            **{
                "transactional.id": transactional_id,
                "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
                # Commit p50 4.5 → 3.1 ms and p90 117 → 4.5 ms against the default of 100.
                "retry.backoff.ms": 2,
                **overrides,
            },
        )
        self._open = False
        self._partitions: dict[str, int] = {}
        """Topic → how many it has, of those that were asked for."""
        self._caller = _Caller()
        self._producer = self._initialised()

    def begin(self) -> None:
        """Open a transaction; nothing to do if one is open."""
        if self._open:
            return
        self._guard(self._producer.begin_transaction)
        self._open = True

    def produce(self, topic: str, value: bytes | None, key: bytes | None = None, headers: Headers | None = None,
                partition: int = -1, timestamp_ms: int = 0) -> None:  # fmt: skip
        """Add one record to the open transaction; waits while the local queue is full.

        No delivery is reported: one that fails makes `commit` fail. A report would take the interpreter's lock for each record.
        """
        while True:
            try:
                self._producer.produce(topic, value, key, partition, None, None, timestamp_ms, headers)
                return
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                self._raise_if_fenced(self._reason(error))
                if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    # To try again would meet it again, for ever: whoever writes keeps its records below the limit.
                    size = len(value or b"") + len(key or b"")
                    raise TidemillError(f"a record of {size} bytes is too large for {topic}") from error
                raise self._lost(error.args[0].str()) from error

    def produce_run(
        self, topic: str, values: Sequence[bytes], keys: Sequence[bytes | None], partition: int
    ) -> None:
        """Add records without headers to the open transaction, in order: in half the time of one `produce` each."""
        produce = self._producer.produce
        for value, key in zip(values, keys, strict=True):
            try:
                produce(topic, value, key, partition)
            except (BufferError, KafkaException):
                self.produce(topic, value, key, None, partition)  # waits, or says what it means
                produce = self._producer.produce

    def home(self, topic: str, source: str) -> int:
        """The partition of `topic` for what comes of `source` (`spread`).

        Raises:
            TransactionLost: the broker does not tell how many partitions there are.
        """
        return spread(source, self.partitions(topic))

    def partitions(self, topic: str) -> int:
        """How many `topic` had when this was first asked.

        Raises:
            TransactionLost: the broker does not tell.
        """
        if topic not in self._partitions:
            try:
                found = self._producer.list_topics(topic, _CALL_TIMEOUT_SEC).topics[topic]
            except KafkaException as error:
                raise self._lost(f"{topic}: {error.args[0].str()}") from error
            if not found.partitions:
                raise self._lost(f"{topic}: no partitions")
            self._partitions[topic] = len(found.partitions)
        return self._partitions[topic]

    def poll(self) -> None:
        """Let the client forget what was delivered; call now and then in a long transaction."""
        self._producer.poll(0)

    def send_offsets(self, places: list[TopicPartition], group_metadata: object) -> None:
        """Add consumed positions (next offset to read) to the transaction, with the group metadata captured when they were polled."""
        send = self._producer.send_offsets_to_transaction
        self._guard(lambda: send(places, group_metadata, _CALL_TIMEOUT_SEC))

    def commit(self) -> None:
        """Commit: all of it is visible to read-committed readers, or none.

        Raises:
            TransactionLost: nothing of it is, or it is unknown; go back to the committed offsets.
            Fenced: stop.
        """
        if not self._open:
            return
        commit = self._producer.commit_transaction
        self._guard(lambda: commit(_CALL_TIMEOUT_SEC))
        self._open = False

    def abort(self) -> None:
        """Abort what is open; nothing to do if nothing is."""
        if not self._open:
            return
        abort = self._producer.abort_transaction
        try:
            self._guard(lambda: abort(_CALL_TIMEOUT_SEC))
        except TransactionLost as error:
            log.warning("%s: abort failed: a new producer settles it", error)
        self._open = False

    def close(self) -> None:
        """Abort what is open and let go."""
        try:
            self.abort()
        except Fenced:
            log.info("%s: fenced while closing", self._transactional_id)
        self._caller.leave()

    def _initialised(self) -> Producer:
        """A new producer, with nothing open.

        Raises:
            Fenced, Outage: as the broker says.
            TidemillError: the call has not come back: only a new process helps.
        """
        client = self._make()
        try:
            self._caller.run(lambda: client.init_transactions(_INIT_TIMEOUT_SEC), 2 * _INIT_TIMEOUT_SEC)
        except TimeoutError:
            raise TidemillError(f"{self._transactional_id}: init_transactions does not come back") from None
        except KafkaException as error:
            self._raise_if_fenced(error)
            raise Outage(
                f"{self._transactional_id}: cannot initialise transactions: {error.args[0].str()}"
            ) from error
        return client

    def _guard(self, call: Callable[[], Any]) -> None:
        """Run a transactional call; a retriable error is retried by calling again, any other loses the transaction."""
        for attempt in range(5):
            try:
                self._caller.run(call, _HUNG_SEC)
                return
            except TimeoutError:
                self._caller.leave()
                self._caller = _Caller()
                raise self._lost(f"a call has not come back within {_HUNG_SEC:g} s") from None
            except KafkaException as error:
                kafka_error: KafkaError = error.args[0]
                # A time-out of commit is retriable to librdkafka: calling again continues the same commit.
                if kafka_error.retriable() and not kafka_error.txn_requires_abort() and attempt < 4:
                    continue
                self._raise_if_fenced(error)
                raise self._lost(kafka_error.str()) from error

    def _lost(self, why: str) -> TidemillError:
        """Make the producer usable again and say what became of the transaction."""
        self._open = False
        self._partitions.clear()
        # Always a new producer, though librdkafka calls some errors abortable: after a delivery that the broker refused, the
        # transaction that follows the abort fails too (skipped sequence numbers). Initialising aborts what is open.
        self._producer = self._initialised()
        return TransactionLost(f"{self._transactional_id}: {why}")

    def _reason(self, error: KafkaException) -> KafkaException:
        """`produce` says that the client is done for, and not why: a transactional call does, at once. Taken for a lost transaction, being
        fenced would make a new producer, which fences its successor."""
        if error.args[0].code() == KafkaError._FATAL:
            try:
                self._producer.abort_transaction(_CALL_TIMEOUT_SEC)
            except KafkaException as reason:
                return reason
        return error

    def _raise_if_fenced(self, error: KafkaException) -> None:
        if error.args[0].code() in _FENCING:
            raise Fenced(f"{self._transactional_id}: another process has taken over") from error


def spread(source: str, partitions: int) -> int:
    """One of `partitions` for what comes of `source` (`TOPIC:PARTITION`): the sources of a topic take turns.

    By their hash, which is what librdkafka goes by, keys that are so alike may all fall into one: of four sources none into the second of two.

    >>> [spread(f"requests.fraud:{partition}", 2) for partition in range(4)]
    [1, 0, 1, 0]
    """
    name, _, number = source.rpartition(":")
    return (crc32(name.encode()) + int(number)) % partitions


_Call: TypeAlias = tuple[Future[None], Callable[[], Any]]


class _Caller:
    """Makes calls one after another in a thread of its own."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        threading.Thread(target=_serve, args=(self._calls,), name="transactions", daemon=True).start()

    def run(self, call: Callable[[], Any], timeout_sec: float) -> None:
        """Make a call. Raises what it raises, or `TimeoutError`: then it goes on, and this caller must be left.

        However long the process is stopped meanwhile, that counts as one slice: the call's answer, such as being fenced, is yet to be heard.
        """
        done: Future[None] = Future()
        self._calls.put((done, call))
        for _ in range(_SLICES):
            if wait([done], timeout_sec / _SLICES).done:
                return done.result()
        raise TimeoutError

    def leave(self) -> None:
        """End the thread once the call that it is in comes back."""
        self._calls.put(None)


def _serve(calls: SimpleQueue[_Call | None]) -> None:
    while (wanted := calls.get()) is not None:
        done, call = wanted
        try:
            call()
        except BaseException as error:  # noqa: BLE001  handed to whoever waits
            done.set_exception(error)
        else:
            done.set_result(None)
        del wanted, done, call  # a producer that was replaced meanwhile ends with the last that speaks of it
