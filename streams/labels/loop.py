"""Feedback in, outcomes out, exactly once: the loop over polls, look-ups and transactions.

One transaction holds outcomes, dead letters, what waits from now on or no longer does, and the consumed offsets. Between two polls it
is either committed or lost, so a revoked partition never leaves one open. Whoever gets a partition (or lost a transaction)

1. goes to the group's committed offset, which the broker tells only when no transaction with offsets of it is open any more;
2. waits until the topic `state` has no open transaction before its present end, and reads what waits;
3. waits until the sink has brought into ClickHouse what `outcomes` ends with at this moment,

and only then joins. From 3 on ClickHouse and `recent` together know the newest label of every prediction. Feedback on one prediction
has to come through one partition (the request's key): two processes do not know of each other's latest joins. What is observed after 1
is kept in memory for a while (`observed`), so that a label on it is joined at once.

Known limits. A request id that was used twice may be joined with the older request while the newer is on its way here.
Feedback that is repeated under its id with another event time, after a third one has revised it and that was forgotten here,
counts as a new revision.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

import msgspec
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer, KafkaException, TopicPartition

from runtime.clock import now_ms
from runtime.compacted import CompactedTopic
from runtime.dead_letters import produce_dead_letter
from runtime.gaps import Gap, Stranded, missing_alert
from runtime.kafka import callback, consumer, gather, judge
from runtime.offsets import committed, or_start
from runtime.positions import EndOffsets, Ends, Place
from runtime.service import Health
from runtime.service import Stage as Shown
from runtime.settings import Settings
from runtime.stalls import StallGuard
from runtime.telemetry import counter, gauge, histogram
from runtime.transactions import TransactionalProducer, TransactionLost
from schemas.errors import Outage, Rejection
from schemas.spec import ModelSpec
from schemas.topics import ALERTS, OBSERVATIONS, OUTCOMES, STATE
from streams.labels.batch import Output, Stage, step
from streams.labels.progress import SinkProgress
from streams.labels.recent import Recent
from streams.labels.record import Received, as_message, decode, known_origin, receive
from streams.labels.waiting import Entry, Name, Waiting, name_of, read_state, state_value
from streams.labels.watch import Watch

log = logging.getLogger(__name__)

NAME: Final = "labels"
BATCH_RECORDS: Final = 32_768
"""Of a backlog. To look up ids that lie anywhere ClickHouse reads much the same of ten million predictions for 8,192 of them as for four times as many."""
POLL_SEC: Final = 0.02
RETRY_SEC: Final = 0.5
TEND_EVERY_SEC: Final = 0.5
REMEMBERED_AT_MOST: Final = 200_000
"""More that wait, or are not confirmed by the sink, pause consumption."""


class Labels:
    """The loop. `turn` is one round: poll, look up, write, commit."""

    def __init__(
        self, settings: Settings, health: Health, client: Client, progress: SinkProgress, guard: StallGuard,
        specs: Mapping[str, ModelSpec], ids: Mapping[str, uuid.UUID],
    ) -> None:  # fmt: skip
        """`specs` and `ids` by topic of feedback."""
        self._settings = settings
        self._health = health
        self._progress = progress
        self._guard = guard
        self._ends = EndOffsets(settings)
        self._specs = specs
        self._waiting, self._recent = Waiting(), Recent()
        self._watch = Watch(settings)
        self._stage = Stage(client, specs, ids, self._watch.observed, self._recent, self._waiting)
        self._next: dict[Place, int] = {}
        """Next offset to consume of each assigned partition."""
        self._stranded = Stranded()
        self._joined = False
        """Whether the group has assigned partitions, or said that there are none for this process."""
        self._started_over = 0
        """How often: what was polled before is somebody else's since, or is read again."""
        self._state_end: Ends | None = None
        self._fence: Ends | None = None
        self._restored = False
        self._outage_until_sec = 0.0
        self._paused = ""
        self._tended_sec = self._looked_sec = 0.0
        self._behind_since_sec: dict[Place, float] = {}
        self._joined_ms = 0
        self._producer = TransactionalProducer(settings, f"{NAME}-{settings.slot}")
        self._consumer = consumer(
            settings, NAME, member=str(settings.slot), **{"auto.offset.reset": "error", **gather(wait_ms=20)}
        )
        self._consumer.subscribe(
            list(self._specs), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )

    def turn(self) -> None:
        """One round; takes about POLL_SEC if there is nothing to do."""
        if self._stranded and time.monotonic() >= self._looked_sec + TEND_EVERY_SEC:
            # Before the poll: all that was polled is committed or given back, so `_next` is where each is to be read on.
            self._looked_sec = time.monotonic()
            self._pass_over_gaps()
        new = self._poll()
        # Captured at the poll: metadata fetched after a rebalance would launder stale work.
        metadata = self._consumer.consumer_group_metadata()
        now_sec = time.monotonic()
        for names in self._watch.read():
            self._waiting.wake(names, now_sec)
        try:
            if not self._restored:
                self._restore(now_sec)
            if now_sec >= self._tended_sec + TEND_EVERY_SEC:
                elapsed_sec, self._tended_sec = now_sec - self._tended_sec, now_sec
                self._tend(now_sec)
                self._look_after(elapsed_sec)
        except Outage as error:
            self._progress.excuse()
            self._outage(error)
        self._set_paused(self._why_pause())
        if not self._restored or now_sec < self._outage_until_sec:
            self._give_back(new)
            return
        due = self._waiting.due(now_sec, self._progress.passed, BATCH_RECORDS)
        if new or due:
            self._work(new, due, metadata)

    def close(self) -> None:
        """Abort what is open and let go."""
        with ExitStack() as closing:
            closing.callback(self._watch.close)
            # Before it: it revokes, and what was observed is forgotten then.
            closing.callback(self._consumer.close)
            closing.callback(self._producer.close)

    def _poll(self) -> list[Received]:
        """What there is, as soon as there is anything: `consume` alone would wait for a full batch."""
        first = self._consumer.poll(POLL_SEC)
        if first is None:
            return []
        started_over, arrived_ms = self._started_over, now_ms()
        messages = [first, *self._consumer.consume(BATCH_RECORDS - 1, 0.0)]
        for message in messages:
            if (error := message.error()) is not None and not self._stranded.take(message):
                judge(error, f"{NAME}-{self._settings.slot}")
        received = receive((message for message in messages if message.error() is None), arrived_ms)
        # `consume` may have served a rebalance. What is assigned by it is paused at once, so nothing of it is among these.
        return received if started_over == self._started_over else []

    def _work(self, new: list[Received], due: list[Entry], metadata: object) -> None:
        """Look up, write and commit one batch."""
        # Training takes the labels joined up to a watermark: no later join may carry an earlier time, or the same.
        self._joined_ms = max(now_ms(), self._joined_ms + 1)
        try:
            ends = self._ends.of([OBSERVATIONS.name]) if new else {}
            output = step(self._stage, new, due, self._joined_ms)
        except Outage as error:
            self._outage(error)
            self._waiting.defer(due, time.monotonic())
            self._give_back(new)
            return
        places = dict(self._next)
        for each in new:
            places[each.topic, each.partition] = each.offset + 1
        try:
            if new or output.writes:
                self._commit(output, places, metadata)
        except (TransactionLost, Outage) as error:
            self._health.error(str(error))
            counter("tidemill_transactions_total").labels(NAME, "lost").inc()
            self._seek(self._start_over(self._consumer, list(self._next)))
            return
        self._committed(output, places, ends)

    def _commit(self, output: Output, places: Mapping[Place, int], metadata: object) -> None:
        producer = self._producer
        started_sec = time.monotonic()
        producer.begin()
        # First: see `inference.commit`. Also those that have not moved: only with offsets does the group refuse a member whose partitions are
        # another's by now, and what waited is settled without any new record.
        reached = [TopicPartition(*place, offset) for place, offset in places.items()]
        producer.send_offsets(reached, metadata)
        for source, value in output.outcomes:
            home = producer.home(OUTCOMES.name, source)
            producer.produce(OUTCOMES.name, value, source.encode(), partition=home)
        for key, waits in output.state.items():
            producer.produce(STATE.name, None if waits is None else state_value(waits), key)
        for received, rejection in output.letters:
            model = self._specs[received.topic].name
            produce_dead_letter(
                producer, as_message(received), rejection,
                stage=NAME, model=model, topic_id=self._stage.topic_ids[received.topic], now_ms=self._joined_ms,
                origin=known_origin(received, model),
            )  # fmt: skip
        producer.commit()
        counter("tidemill_transactions_total").labels(NAME, "committed").inc()
        histogram("tidemill_commit_seconds").labels(NAME).observe(time.monotonic() - started_sec)

    def _committed(self, output: Output, places: dict[Place, int], ends: Ends) -> None:
        """What is true now that the transaction is committed."""
        now_sec = time.monotonic()
        self._next = places
        self._recent.add(output.known)
        self._waiting.remove(key for key, waits in output.state.items() if waits is None)
        self._waiting.add(output.waits, ends, now_sec)
        for entry, received in output.orphans:
            self._waiting.orphan(entry, received, now_sec)
        self._waiting.defer(output.deferred, now_sec)
        for (model, result), records in output.results.items():
            counter("tidemill_feedback_total").labels(model, result).inc(records)

    @callback
    def _on_assign(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        self._joined = True
        self._stranded.clear()
        places = self._start_over(client, [(place.topic, place.partition) for place in partitions])
        client.assign(places)
        if places:
            client.pause(places)
        self._paused = "assigned" if places else ""

    @callback
    def _on_revoke(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        self._joined = False
        self._health.set_ready(False)
        for topic, partition in self._next:
            self._health.drop_stage(f"{topic}[{partition}]")
        self._stranded.clear()
        self._start_over(client, [])

    def _start_over(self, client: Consumer, places: list[Place]) -> list[TopicPartition]:
        """Forget everything, and return where the group stands on `places`; nothing is joined until `_restore` is through."""
        self._waiting.clear()
        self._recent.clear()
        self._watch.end()
        self._restored, self._state_end, self._fence = False, None, None
        self._started_over += 1
        known = committed(client, [TopicPartition(*place) for place in places]) if places else []
        found = or_start(client, known)
        self._next = {(place.topic, place.partition): place.offset for place in found}
        return found

    def _restore(self, now_sec: float) -> None:
        """Steps 2 and 3 of the module's docstring, as far as they can be done now."""
        if self._next:
            if self._state_end is None:
                # After the committed offsets were told: what is observed from here on, nobody else has labelled.
                self._watch.begin(self._ends.of([OBSERVATIONS.name]))
                self._state_end = self._ends.of([STATE.name])
            if self._fence is None:
                stable = self._ends.of([STATE.name], stable=True)
                if any(stable[place] < end for place, end in self._state_end.items()):
                    return
                state = CompactedTopic(self._settings, STATE.name)
                state.close()
                waits = read_state(state.values, self._next)
                named = {key: (received, self._name(received)) for key, received in waits.items()}
                self._waiting.add(named, self._ends.of([OBSERVATIONS.name]), now_sec)
                self._fence = self._ends.of([OUTCOMES.name])
            if not self._progress.passed(self._fence):
                return
        elif not self._joined:
            return
        self._restored = True
        self._health.set_ready()

    def _name(self, received: Received) -> Name | None:
        """What a record that waited speaks of; None if the spec has changed so that it is no label any more."""
        spec = self._specs[received.topic]
        try:
            label = decode(received, spec)
        except Rejection:
            return None  # dead-lettered when it is due
        return None if label is None else name_of(spec.name, label)

    def _passed(self, ends: Ends) -> bool:
        """Whether what is below `ends` is in ClickHouse, and what of it was observed lately was looked at here."""
        return self._progress.passed(ends) and self._watch.passed(ends)

    def _why_pause(self) -> str:
        if not self._restored:
            return "waits for the sink to bring earlier outcomes into ClickHouse"
        if time.monotonic() < self._outage_until_sec:
            return "ClickHouse or Kafka is away"
        if self._waiting.undecided + len(self._recent) > REMEMBERED_AT_MOST:
            return "too much waits for the sink"
        return ""

    def _set_paused(self, why: str) -> None:
        places = [TopicPartition(*place) for place in self._next]
        if places and why and not self._paused:
            self._consumer.pause(places)
        elif places and not why and self._paused:
            self._consumer.resume(places)
        self._paused = why
        gauge("tidemill_paused_partitions").labels(NAME).set(len(places) if why else 0)

    def _outage(self, error: Outage) -> None:
        self._health.error(str(error))
        self._outage_until_sec = time.monotonic() + RETRY_SEC

    def _give_back(self, records: list[Received]) -> None:
        """Go back to before `records`: nothing of them is remembered."""
        places = {(each.topic, each.partition) for each in records}
        self._seek([TopicPartition(*place, self._next[place]) for place in places])

    def _seek(self, places: list[TopicPartition]) -> None:
        for place in places:
            # A stranded one is not being read: it is assigned anew (`_pass_over_gaps`).
            if (place.topic, place.partition) not in self._stranded:
                self._consumer.seek(place)

    def _pass_over_gaps(self) -> None:
        """Tell people of feedback that Kafka has dropped or lost, and only then read on behind it."""
        moved = False
        try:
            for place, gap in self._stranded.gaps(self._consumer, self._next):
                if gap is not None:
                    self._tell(gap)
                    # Where the log was cut, from its beginning: a label that is repeated changes nothing.
                    (start,) = or_start(self._consumer, [TopicPartition(*place, -1 if gap.cut else gap.end)])
                    self._next[place] = start.offset
                self._stranded.forget(place)
                moved = True
        except (KafkaException, Outage, TransactionLost) as error:
            self._health.error(f"what Kafka does not have cannot be told: {error}")
        if moved:
            places = [TopicPartition(*place, offset) for place, offset in self._next.items()]
            self._consumer.assign(places)
            if self._paused:
                self._consumer.pause(places)

    def _tell(self, gap: Gap) -> None:
        """An alert, in a transaction of its own."""
        topic = gap.place[0]
        alert = missing_alert(gap, NAME, self._specs[topic].name, self._stage.topic_ids[topic], now_ms())
        self._health.error(alert.message)
        self._producer.begin()
        self._producer.produce(ALERTS.name, msgspec.json.encode(alert), alert.model.encode())
        self._producer.commit()

    def _look_after(self, elapsed_sec: float) -> None:
        """See to it that what is read moves, and that the sink is followed. Kafka has just answered; `elapsed_sec` since it did before.

        Raises:
            Stalled, TidemillError: a restart helps.
        """
        reading = {**({} if self._paused else self._next), **self._watch.positions}
        self._guard.reading(reading, joined=self._joined)
        self._progress.insist(elapsed_sec)

    def _tend(self, now_sec: float) -> None:
        """Forget what ClickHouse has, and say how things stand."""
        ends = self._ends.of([*self._specs, OUTCOMES.name, OBSERVATIONS.name])
        written = {place: end for place, end in ends.items() if place[0] not in self._specs}
        self._watch.observed.label(self._recent.forget(self._passed, lambda: written))
        waiting = self._waiting.counts()
        lags: dict[str, int] = dict.fromkeys(self._specs, 0)
        for place, offset in self._next.items():
            lag = max(ends[place] - offset, 0)
            lags[place[0]] += lag
            since_sec = self._behind_since_sec.setdefault(place, now_sec)
            if not lag:
                self._behind_since_sec[place] = since_sec = now_sec
            shown = Shown(
                lag_records=lag,
                oldest_age_sec=round(now_sec - since_sec, 1),
                state="paused" if self._paused else "running",
                note=self._paused,
            )
            self._health.stage(f"{place[0]}[{place[1]}]", shown)
        for topic, spec in self._specs.items():
            gauge("tidemill_lag_records").labels(NAME, topic).set(lags[topic])
            gauge("tidemill_labels_pending").labels(spec.name).set(waiting.get(topic, 0))
        self._health.detail(waiting=waiting, orphans=len(self._waiting) - self._waiting.undecided)
