"""`python -m training [LANE]`: retrain orders in, candidates out, one order at a time in each lane.

Updates and majors are two lanes (`lanes.LANES`), each a process with a consumer group and a transactional id of its own: an update, due within
the second, does not wait for a major that takes minutes. A lane passes over what is the other's.

1. An order is polled and trained on another thread; if that takes long, this one pauses the partition and goes on polling, so that
   a training may take longer than the group waits for a poll.
2. The artifact is written whole (the same content has the same name, so writing it again changes nothing).
3. One transaction holds the candidate and the order's offset: an order is answered once, whatever dies when.

A crash before 3 trains the order again. An order that was sent twice (the same id, or the same dedupe key) is answered once: the
answered ones are read from `candidates` at start, after this transactional id was initialised, so that no transaction of a
predecessor can still add one. An order that cannot be followed is answered with a refusal; one that cannot be read is a dead letter;
while ClickHouse is away the order waits.
"""

from __future__ import annotations

import gc
import logging
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack
from typing import Final

import msgspec
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from runtime.clock import now_ms
from runtime.dead_letters import produce_dead_letter
from runtime.kafka import admin, callback, consumer, judge, raise_if_fenced, topic_ids
from runtime.offsets import or_start, told
from runtime.service import Health, Stage, Stop
from runtime.settings import Settings
from runtime.stalls import StallDetector, Stalled, StallGuard, positions_of
from runtime.telemetry import counter, gauge, histogram
from runtime.transactions import TransactionalProducer, TransactionLost
from schemas.errors import Outage, Rejection
from schemas.events import Candidate, Retrain
from schemas.topics import CANDIDATES, RETRAINS
from training.answered import answered, identity
from training.fit import Step, warm_up
from training.history import Histories
from training.lanes import LANES, UPDATES
from training.tail import Tail
from training.trainer import Trainer
from warehouse.client import Refused, connect

log = logging.getLogger(__name__)

_POLL_SEC: Final = 0.2
_KEEP_POLLING_SEC: Final = 0.5
_RETRY_SEC: Final = 1.0
_PASS_SEC: Final = 1.0
"""So often, at most, the offset behind orders of the other lane is committed by itself."""


def serve(settings: Settings, health: Health, stop: Stop, lane: str = UPDATES) -> None:
    """Train the orders of `lane` until told to stop; after an outage, a lost transaction or a consumer that stands still begin again from the
    committed offset, with other clients. The labelled rows that are in memory stay there: to read them anew takes ClickHouse seconds.

    Raises:
        Fenced: another process is this lane's trainer.
    """
    histories: Histories = {}
    while not stop.is_set():
        service = None
        # Clients and callbacks of the session before hold each other. They are few and large, and the collector goes by their number.
        gc.collect()
        try:
            service = Service(settings, health, lane, histories)
            service.run(stop)
        except (Outage, Refused, Stalled, TransactionLost, KafkaException) as error:
            if isinstance(error, KafkaException):
                raise_if_fenced(error.args[0], f"{lane}-{settings.slot}")
            health.set_ready(False)
            health.error(str(error))
            health.stage(RETRAINS.name, Stage(state="paused", note=str(error)))
            gauge("tidemill_paused_partitions").labels(lane).set(1)
            stop.wait(_RETRY_SEC)
        finally:
            if service is not None:
                service.close()


class Service:
    """One session: from the committed offset until the stop or the first failure."""

    def __init__(self, settings: Settings, health: Health, lane: str, histories: Histories) -> None:
        self._health, self._lane, self._kinds = health, lane, LANES[lane]
        self._member = f"{lane}-{settings.slot}"
        self._client = connect(
            settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password
        )
        self._tail = Tail(settings) if lane == UPDATES else None
        self._trainer = Trainer(settings, self._client, self._tail, histories)
        self._topic_id = topic_ids(admin(settings), [RETRAINS.name]).get(RETRAINS.name)
        if self._topic_id is None:
            raise Outage(f"topic {RETRAINS.name} is not there yet")
        self._producer = TransactionalProducer(settings, self._member)
        self._answered = answered(settings)
        self._passed_over = False
        """Whether an order of the other lane lies before the position, and behind what is committed."""
        self._passed_sec = 0.0
        self._assignment = 0
        """Counts assignments: what was polled under an earlier one is not committed under a later one."""
        self._consumer: Consumer = consumer(settings, lane, member=str(settings.slot))
        self._consumer.subscribe(
            [RETRAINS.name], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )
        self._joined = False
        """Whether the group has given this lane its partition."""
        self._guard = StallGuard(StallDetector(settings, lane))
        self._guard.start()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=lane)
        self._warm = self._worker.submit(warm_up) if lane == UPDATES else None

    def run(self, stop: Stop) -> None:
        """Poll, train, commit."""
        gauge("tidemill_paused_partitions").labels(self._lane).set(0)
        while not stop.is_set():
            message = self._consumer.poll(_POLL_SEC)
            self._guard.reading(positions_of(self._consumer), joined=self._joined)
            if message is None:
                if self._warm is not None and self._warm.done():
                    self._warm.result()
                    self._warm = None
                if self._tail is not None:
                    self._tail.read()  # now, or the next order would have to
                self._pass()
                self._report(Stage(lag_records=self._lag()))
                continue
            if (error := message.error()) is not None:
                judge(error, self._member)
            else:
                self._take(message, stop)

    def close(self) -> None:
        """Let go of everything; an order that was not committed is trained again."""
        with ExitStack() as closing:
            closing.callback(self._client.close)
            if self._tail is not None:
                closing.callback(self._tail.close)
            closing.callback(self._consumer.close)
            closing.callback(self._producer.close)
            # A fit that goes on after a failure here ends before the next session begins; what it wrote is written once.
            closing.callback(self._worker.shutdown, wait=True, cancel_futures=True)
            closing.callback(self._guard.close)

    def _take(self, message: Message, stop: Stop) -> None:
        """One record of `retrains`, to its committed end."""
        assignment, metadata = self._assignment, self._consumer.consumer_group_metadata()
        try:
            order = msgspec.json.decode(message.value() or b"", type=Retrain)
        except msgspec.MsgspecError as error:
            if self._lane != UPDATES:  # One of the lanes says it.
                self._passed_over = True
                return
            self._commit(message, metadata, None, Rejection("undecodable", "", "a retrain order", str(error)))
            return
        if order.kind not in self._kinds:
            self._passed_over = True
            return
        if self._answered & identity(order.event_id, order.dedupe_key):
            log.info("%s: order %s was answered before", order.model, order.event_id)
            self._commit(message, metadata, None, None)
            return
        candidate = self._trained(order, message, stop)
        if candidate is None:
            return
        if assignment != self._assignment:
            log.warning("%s: order %s went to another trainer meanwhile", order.model, order.event_id)
            return
        self._commit(message, metadata, candidate, None)
        self._answered |= identity(order.event_id, order.dedupe_key)
        result = "passed" if candidate.passed else "refused"
        counter("tidemill_trainings_total").labels(order.model, order.kind, result).inc()
        histogram("tidemill_training_seconds").labels(order.kind).observe(candidate.train_ms / 1e3)
        log.info(
            "%s: %s %s from %d rows in %.0f ms%s", order.model, candidate.version, result, candidate.rows,
            candidate.train_ms, f": {candidate.reason}" if candidate.reason else "",
        )  # fmt: skip

    def _trained(self, order: Retrain, message: Message, stop: Stop) -> Candidate | None:
        """The candidate, trained on the worker thread while this one keeps the membership; None if told to stop meanwhile."""
        timestamp_ms = message.timestamp()[1]
        self._report(Stage(
            lag_records=1, oldest_age_sec=max(0, now_ms() - timestamp_ms) / 1e3,
            note=f"training {order.model} {order.new_version}",
        ))  # fmt: skip

        def unless_stopped(_step: Step) -> None:
            if stop.is_set():
                raise Outage("told to stop")

        future: Future[Candidate] = self._worker.submit(self._trainer.train, order, unless_stopped)
        wait_for([future], _KEEP_POLLING_SEC)
        if not future.done():
            # Only now: fetching sets in again half a second after a resume, and an update is done long before this.
            self._consumer.pause(self._consumer.assignment())
            while not future.done():
                if stop.is_set():
                    return None
                self._keep_membership()
                wait_for([future], _KEEP_POLLING_SEC)
            self._consumer.resume(self._consumer.assignment())
        return future.result()

    def _pass(self) -> None:
        """Commit the offset behind orders of the other lane, which need no answer here."""
        now_sec = time.monotonic()
        if self._passed_over and now_sec >= self._passed_sec + _PASS_SEC:
            self._consumer.commit(
                offsets=self._consumer.position(self._consumer.assignment()), asynchronous=False
            )
            self._passed_over, self._passed_sec = False, now_sec

    def _keep_membership(self) -> None:
        """Poll without taking anything: all partitions are paused."""
        extra = self._consumer.poll(0)
        if extra is None:
            return
        if (error := extra.error()) is not None:
            judge(error, self._member)
            return
        # A rebalance brought a fresh, unpaused partition: its record is read again from the committed offset.
        raise TransactionLost(f"{RETRAINS.name}: partitions moved during a training")

    def _commit(
        self, message: Message, metadata: object, candidate: Candidate | None, rejection: Rejection | None
    ) -> None:
        """One transaction: the answer, if there is one, and the offset behind the order."""
        started = time.perf_counter()
        self._producer.begin()
        if candidate is not None:
            self._producer.produce(CANDIDATES.name, msgspec.json.encode(candidate), candidate.model.encode())
        if rejection is not None:
            self._health.error(f"{RETRAINS.name}: {rejection.message}")
            produce_dead_letter(
                self._producer, message, rejection,
                stage=UPDATES, model="", topic_id=self._topic_id or uuid.UUID(int=0), now_ms=now_ms(),
            )  # fmt: skip
        place = TopicPartition(message.topic() or "", message.partition() or 0, (message.offset() or 0) + 1)
        self._producer.send_offsets([place], metadata)
        self._producer.commit()
        self._passed_over = False
        counter("tidemill_transactions_total").labels(self._lane, "committed").inc()
        histogram("tidemill_commit_seconds").labels(self._lane).observe(time.perf_counter() - started)

    @callback
    def _assigned(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        self._assignment += 1
        # Orders that come again were answered: "none" costs nothing here.
        client.assign(or_start(client, told(client, partitions)))
        self._joined = True
        self._health.set_ready()

    @callback
    def _revoked(self, _client: Consumer, _partitions: list[TopicPartition]) -> None:
        # No transaction is open between two polls; what is being trained belongs to the next owner.
        self._assignment += 1
        self._joined = False

    def _lag(self) -> int:
        lag = 0
        for place in self._consumer.position(self._consumer.assignment()):
            _, high = self._consumer.get_watermark_offsets(place, cached=True)
            # The last record of a transaction is followed by its marker, which nobody reads.
            if place.offset >= 0 and high > place.offset + 1:
                lag += high - place.offset
        return lag

    def _report(self, stage: Stage) -> None:
        self._health.stage(RETRAINS.name, stage)
        gauge("tidemill_lag_records").labels(self._lane, RETRAINS.name).set(stage.lag_records)
