"""The shell around the partitions: polls, commits plans, starts inserts, follows rebalances, says how it is, shuts down.

Only this thread touches the consumer and the partitions; inserts run in threads of their own (`pools`).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from runtime.clock import now_ms
from runtime.headers import pairs
from runtime.kafka import (
    REQUEST_TIMEOUT_SEC,
    callback,
    consumer,
    gather,
    judge,
    raise_if_fenced,
)
from runtime.positions import SINK_GROUP, Place
from runtime.service import Health
from runtime.settings import Settings
from runtime.stalls import StallDetector, StallGuard
from runtime.telemetry import traceparent
from runtime.topics import Topics
from runtime.unowned import STRATEGY
from schemas.errors import Outage, Rejection
from schemas.spec import ModelSpec
from streams.sink.alerts import Alerts
from streams.sink.partition import Partition
from streams.sink.plan import Plan, encode_plan
from streams.sink.pools import Pools
from streams.sink.ranges import Range, Record
from streams.sink.status import report
from streams.sink.tables import targets
from streams.sink.takeover import take_over
from warehouse.client import Refused

log = logging.getLogger(__name__)

GROUP: Final = SINK_GROUP
BATCH_RECORDS: Final = 200
IDLE_WAIT_SEC: Final = 0.05
BUSY_WAIT_SEC: Final = 0.005
REPORT_SEC: Final = 0.5
TOPICS_SEC: Final = 10.0
MEMORY_BYTES: Final = 256 * 1024 * 1024
"""Bytes pending over all partitions above which only empty partitions are consumed."""
HALT_RETRY_SEC: Final = 15.0
"""So often a halted partition is begun anew: what was mended elsewhere goes on without a restart."""


class Sink:
    """One member of the group `sink`. `step` in a loop, then `close`."""

    def __init__(
        self, settings: Settings, health: Health, client: Client, specs: dict[str, ModelSpec]
    ) -> None:
        self._health = health
        self._targets = targets(specs)
        self._partitions: dict[Place, Partition] = {}
        self._inserts = Pools(settings, client, [table for table, _ in self._targets.values()])
        self._stopped: set[Place] = set()
        """Places whose consumption is paused."""
        self._joined = False
        """Whether the group has assigned partitions, or said that there are none for this process."""
        self._halted_at: dict[Place, float] = {}
        """When a partition was last found halted."""
        self._alerted: dict[Place, int] = {}
        """At which offset people were told of a halt."""
        self._topics = Topics(settings)
        self._watcher = ThreadPoolExecutor(1, thread_name_prefix="topics")
        self._ids: Future[dict[str, uuid.UUID]] | None = None
        self._alerts = Alerts(settings)
        self._report_at = self._topics_at = 0.0
        self._guard = StallGuard(StallDetector(settings, GROUP, shared=self._targets))
        self._guard.start()
        self._consumer: Consumer = consumer(
            settings,
            GROUP,
            member=str(settings.slot),
            **{
                # An offset that Kafka no longer has is an error for us to see, never a silent jump.
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                **gather(wait_ms=50),
                **STRATEGY,
                "queued.max.messages.kbytes": 32 * 1024,
            },
        )
        self._consumer.subscribe(
            list(self._targets), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )

    def step(self) -> None:
        """One round: consume, collect finished inserts, plan and start the next, confirm.

        Raises:
            Fenced: another process runs under this slot.
            Stalled: there is something to read and it does not come: a restart helps.
        """
        for message in self._drain():
            self._take(message)
        self._collect()
        now = time.monotonic()
        self._plan(now)
        self._retry(now)
        self._throttle(now)
        self._alert(now)
        self._try_again(now)
        if now >= self._report_at:
            self._report_at = now + REPORT_SEC
            self._health.set_ready(self._joined)
            reading = {
                place: partition.position
                for place, partition in self._partitions.items()
                if place not in self._stopped
            }
            self._guard.reading(reading, joined=self._joined)
            report(self._health, self._consumer, self._partitions.values(), now_ms())
        if now >= self._topics_at:
            self._topics_at = now + TOPICS_SEC
            self._watch_topics()

    def close(self) -> None:
        """Leave the group, which gives the partitions back (`_revoked`). Static membership: none moves if we are back in time."""
        with ExitStack() as closing:
            closing.callback(self._guard.close)
            closing.callback(self._watcher.shutdown)
            closing.callback(self._inserts.close)
            closing.callback(self._alerts.close, REQUEST_TIMEOUT_SEC)
            closing.callback(self._consumer.close)

    # ── consuming ──

    def _drain(self) -> list[Message]:
        """What is there, after waiting for the first record only."""
        wait_sec = (
            BUSY_WAIT_SEC
            if self._inserts or any(p.pending for p in self._partitions.values())
            else IDLE_WAIT_SEC
        )
        first: list[Message] = self._consumer.consume(1, wait_sec)
        return [*first, *self._consumer.consume(BATCH_RECORDS, 0)] if first else first

    def _take(self, message: Message) -> None:
        now = time.monotonic()
        error = message.error()
        topic, number, offset = message.topic(), message.partition(), message.offset()
        partition = self._partitions.get((topic or "", -1 if number is None else number))
        if error is not None:
            self._took_error(error, partition, offset, now)
            return
        if partition is None or offset is None or not partition.wants(offset):
            return
        try:
            rows = partition.table.decode(message, partition.source)
        except Rejection as rejection:
            partition.poison(offset, rejection.message)
            return
        header = traceparent(pairs(message.headers())) if self._inserts.traces else ""
        size = len(message.value() or b"")
        record = Record(
            offset, message.timestamp()[1], rows.rows, size, rows.table_partitions, rows.payload, header
        )
        partition.take(record, now)

    def _took_error(
        self, error: KafkaError, partition: Partition | None, offset: int | None, now: float
    ) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            if partition is not None and offset is not None and not partition.halted:
                partition.end(offset, now)
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            if partition is not None:
                partition.halt(f"Kafka no longer has offset {partition.committed}: {error.str()}")
        else:
            judge(error, GROUP)

    def _throttle(self, now: float) -> None:
        """Backpressure: a partition with enough pending, or that waits for ClickHouse, is not consumed; with much pending overall, none
        that has any."""
        crowded = sum(partition.pending_bytes for partition in self._partitions.values()) > MEMORY_BYTES
        stopped = {place for place, partition in self._partitions.items() if partition.enough(now, crowded)}
        if pause := stopped - self._stopped:
            self._consumer.pause([TopicPartition(*place) for place in pause])
        if resume := self._stopped - stopped:
            self._consumer.resume([TopicPartition(*place) for place in resume if place in self._partitions])
        self._stopped = stopped

    # ── planning and inserting ──

    def _plan(self, now: float) -> None:
        """Commit the plans of all ranges that are due, and the confirmations that are, in one request; then start the inserts."""
        due: dict[Place, Range] = {}
        places: list[TopicPartition] = []
        confirmations: dict[Place, int] = {}
        for place, partition in self._partitions.items():
            recovering = partition.recovering
            range_ = partition.due(now)
            if range_ is None:
                offset = partition.confirm_due(now)
                if offset is not None:
                    confirmations[place] = offset
                    places.append(
                        _committed(
                            partition, offset, Plan(topic_id=partition.source.topic_id, end=offset, rows=0)
                        )
                    )
            elif not range_.rows:
                partition.launch(range_, now)
                partition.inserted(0.0, now)
            elif recovering:
                self._start(place, partition, range_, now)
            else:
                due[place] = range_
                plan = Plan(topic_id=range_.topic_id, end=range_.end, rows=range_.rows)
                places.append(_committed(partition, range_.first, plan))
        for place in self._commit(places):
            partition = self._partitions[place]
            if place in due:
                self._start(place, partition, due[place], now)
            else:
                partition.confirmed(confirmations[place])

    def _commit(self, places: list[TopicPartition]) -> list[Place]:
        """Commit; return the places that Kafka took. The others are still due and come again with the next round."""
        if not places:
            return []
        try:
            results = self._consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            raise_if_fenced(error.args[0], GROUP)
            self._health.error(f"Kafka takes no commit: {error.args[0].str()}")
            return []
        for result in results or []:
            if result.error is not None:
                self._health.error(
                    f"Kafka takes no commit of {result.topic}:{result.partition}: {result.error.str()}"
                )
        return [(result.topic, result.partition) for result in results or [] if result.error is None]

    def _start(self, place: Place, partition: Partition, range_: Range, now: float) -> None:
        partition.launch(range_, now)
        self._submit(place, partition)

    def _submit(self, place: Place, partition: Partition) -> None:
        range_ = partition.flight
        if range_ is None:
            raise AssertionError("nothing to insert")
        self._inserts.submit(place, partition.table, range_, partition.retrying)

    def _collect(self) -> None:
        now = time.monotonic()
        for place, future in self._inserts.done():
            self._conclude(self._partitions[place], future, now)

    def _conclude(self, partition: Partition, future: Future[float], now: float) -> None:
        if partition.halted:
            return  # meanwhile, for another reason: whoever begins it anew finds the plan
        try:
            partition.inserted(future.result(), now)
        except Outage as error:
            partition.failed(str(error), now)
            self._health.error(f"{partition.topic}:{partition.number}: {error}")
        except Refused as error:
            partition.halt(f"ClickHouse refuses offsets {partition.flight_offsets}: {error}")

    def _retry(self, now: float) -> None:
        for place, partition in self._partitions.items():
            if place not in self._inserts and partition.retry_due(now):
                self._submit(place, partition)

    def _alert(self, now: float) -> None:
        for place, partition in self._partitions.items():
            if not partition.halted:
                continue
            self._halted_at.setdefault(place, now)
            if self._alerted.get(place) != partition.committed:
                self._alerted[place] = partition.committed
                self._health.error(f"{partition.topic}:{partition.number} halted: {partition.halted}")
                self._alerts.partition_halted(partition, now_ms())
        self._alerts.send()

    def _try_again(self, now: float) -> None:
        """Begin the halted partitions anew now and then, as a restart would."""
        due = [
            place
            for place, partition in self._partitions.items()
            if partition.halted
            and place not in self._inserts
            and now >= self._halted_at[place] + HALT_RETRY_SEC
        ]
        if not due:
            return
        places = [TopicPartition(*place) for place in due]
        try:
            starts = self._begin(self._consumer, places)
        except (KafkaException, Outage) as error:
            self._health.error(f"halted partitions cannot be begun anew: {error}")
            self._halted_at |= dict.fromkeys(due, now)
            return
        self._consumer.incremental_unassign(places)
        self._consumer.incremental_assign(starts)
        self._consumer.resume(starts)
        for place in due:
            del self._halted_at[place]
            self._stopped.discard(place)

    # ── rebalances ──

    @callback
    def _assigned(self, client: Consumer, assigned: list[TopicPartition]) -> None:
        self._joined = True
        if not assigned:
            return
        starts = self._begin(client, assigned)
        client.incremental_assign(starts)
        # librdkafka remembers a pause across assignments, and `_stopped` does not.
        client.resume(starts)
        log.info("assigned %s", ", ".join(f"{place.topic}:{place.partition}" for place in assigned))

    def _begin(self, client: Consumer, places: list[TopicPartition]) -> list[TopicPartition]:
        """Take partitions over (`take_over`); where to read on."""
        taken = take_over(client, self._topics, self._targets, places)
        self._partitions |= {(partition.topic, partition.number): partition for partition, _ in taken}
        return [start for _, start in taken]

    @callback
    def _revoked(self, client: Consumer, revoked: list[TopicPartition]) -> None:
        """Give partitions back: what is pending is dropped, what is under way is waited for and confirmed."""
        self._settle(revoked)
        leaving = [(place.topic, place.partition) for place in revoked]
        confirmations = []
        for place in leaving:
            partition = self._partitions.get(place)
            if partition is not None and (offset := partition.to_confirm) is not None:
                confirmations.append(
                    _committed(
                        partition, offset, Plan(topic_id=partition.source.topic_id, end=offset, rows=0)
                    )
                )
        self._commit(confirmations)
        self._forget(leaving)
        self._joined = bool(self._partitions)
        self._health.set_ready(self._joined)

    @callback
    def _lost(self, client: Consumer, lost: list[TopicPartition]) -> None:
        """The partitions are somebody else's already: commit nothing."""
        self._settle(lost)
        self._forget((place.topic, place.partition) for place in lost)
        self._joined = bool(self._partitions)
        self._health.set_ready(self._joined)

    def _settle(self, places: list[TopicPartition]) -> None:
        """Wait for the running inserts of `places`."""
        self._inserts.wait([(place.topic, place.partition) for place in places])
        self._collect()

    def _forget(self, places: Iterable[Place]) -> None:
        for place in places:
            self._partitions.pop(place, None)
            self._stopped.discard(place)
            self._alerted.pop(place, None)
            self._halted_at.pop(place, None)
            self._health.drop_stage(f"{place[0]}:{place[1]}")

    def _watch_topics(self) -> None:
        """Halt the partitions of a topic that was recreated under us. The broker is asked in another thread."""
        if self._ids is not None and self._ids.done():
            try:
                ids = self._ids.result()
            except Outage as error:
                self._health.error(str(error))
                ids = {}
            for partition in self._partitions.values():
                found = ids.get(partition.topic)
                if found is not None and found != partition.source.topic_id and not partition.halted:
                    partition.halt(f"{partition.topic} is topic {found} now: it was recreated")
            self._ids = None
        if self._ids is None:
            names = {partition.topic for partition in self._partitions.values()}
            self._ids = self._watcher.submit(self._topics.ids, names)


def _committed(partition: Partition, offset: int, plan: Plan) -> TopicPartition:
    return TopicPartition(partition.topic, partition.number, offset, encode_plan(plan))
