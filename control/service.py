"""The control room: outcomes, alerts, candidates and commands in; retrain orders, route tables and their reasons out.

One process decides for all models. What it decides, what it remembers and the offsets that both cover are one transaction of the
transactional id `control`: a second control room fences the first, and a crash at any point leaves a state from which the same
decisions follow. Decisions are pure (`policy`, `rollout`); this file moves the bytes.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

import msgspec
import pyarrow as pa
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from tritonclient.grpc import InferenceServerClient

from control import policy, rollout
from control.golden import check_golden
from control.pairs import READ, Versions, differences, first_labels
from control.prune import doomed
from control.state import ModelState
from runtime.artifacts import ArtifactStore
from runtime.clock import now_ms
from runtime.compacted import CompactedTopic
from runtime.dead_letters import produce_dead_letter
from runtime.kafka import admin, callback, consumer, judge, topic_ids
from runtime.offsets import committed, or_start
from runtime.service import Health, Stage, Stop
from runtime.settings import Settings
from runtime.stalls import StallDetector, Stalled, StallGuard, positions_of
from runtime.telemetry import counter
from runtime.transactions import TransactionalProducer, TransactionLost
from schemas.arrow import decode_batch
from schemas.artifact import parse_version
from schemas.errors import Outage, Rejection
from schemas.events import Alert, Candidate, Command, Retrain, RouteTable
from schemas.spec import load_specs
from schemas.topics import ALERTS, CANDIDATES, COMMANDS, OUTCOMES, RETRAINS, ROLLOUTS, ROUTES, STATE

log = logging.getLogger(__name__)

STATE_KEY: Final = "control/"
_EVENTS: Final[Mapping[str, type[Alert | Candidate | Command]]] = {
    ALERTS.name: Alert,
    CANDIDATES.name: Candidate,
    COMMANDS.name: Command,
}
_POLL_SEC: Final = 0.05
_SAVE_SEC: Final = 0.25
_HEALTH_SEC: Final = 1.0
_BATCH: Final = 500
_RETRY_SEC: Final = 1.0


def main(settings: Settings, health: Health, stop: Stop) -> None:
    """Decide until told to stop; after an outage, a lost transaction or a consumer that stands still everything is read again from what was
    committed, with other clients."""
    while not stop.is_set():
        room = None
        try:
            room = ControlRoom(settings, health)
            room.run(stop)
        except (Outage, Stalled, TransactionLost, KafkaException) as error:
            health.set_ready(False)
            health.error(str(error))
            stop.wait(_RETRY_SEC)
        finally:
            if room is not None:
                room.close()


class ControlRoom:
    """One session: from what was committed until the stop or the first failure."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings, self._health = settings, health
        self._specs = load_specs(settings.models_dir)
        self._store = ArtifactStore(settings.artifacts_dir)
        self._triton = InferenceServerClient(settings.triton_grpc_url)
        # Initialising comes before reading: whoever is fenced by it writes nothing after what is read here.
        self._producer = TransactionalProducer(settings, "control")
        self._routes = {name: rollout.empty_route(name) for name in self._specs}
        self._states = {name: ModelState() for name in self._specs}
        self._restore()
        self._consumer: Consumer = consumer(settings, "control", member="0")
        self._consumer.subscribe(
            [OUTCOMES.name, ALERTS.name, CANDIDATES.name, COMMANDS.name],
            on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked,
        )  # fmt: skip
        self._joined = False
        """Whether the group has given this process its partitions."""
        self._guard = StallGuard(StallDetector(settings, "control"))
        self._guard.start()
        self._positions: dict[tuple[str, int], int] = {}
        self._touched: set[str] = set()
        self._decided = False
        self._saved_at = self._reported_at = 0.0

    def run(self, stop: Stop) -> None:
        """Poll, decide, commit."""
        while not stop.is_set():
            # `consume` alone would wait for a full batch, and every update with it.
            first = self._consumer.poll(_POLL_SEC)
            for message in [first, *self._consumer.consume(_BATCH - 1, 0.0)] if first is not None else []:
                if (error := message.error()) is not None:
                    judge(error, "control")
                else:
                    self._take(message)
            for name, spec in self._specs.items():
                self._order(name, *policy.on_schedule(spec, self._routes[name], self._states[name], now_ms()))
            now = time.monotonic()
            if self._decided or (self._positions and now - self._saved_at >= _SAVE_SEC):
                self._commit()
            if now - self._reported_at >= _HEALTH_SEC:
                self._guard.reading(positions_of(self._consumer), joined=self._joined)
                self._report()
                self._reported_at = now
        self._commit()

    def close(self) -> None:
        """Let go of everything; what was not committed is decided again."""
        with ExitStack() as closing:
            closing.callback(self._triton.close)
            closing.callback(self._consumer.close)
            closing.callback(self._producer.close)
            closing.callback(self._guard.close)

    def _take(self, message: Message) -> None:
        try:
            event = decoded(message)
        except Rejection as rejection:
            self._refuse(message, rejection)
        else:
            if isinstance(event, Alert):
                self._on_alert(event)
            elif isinstance(event, Candidate):
                self._on_candidate(event)
            elif isinstance(event, Command):
                self._on_command(event)
            else:
                self._on_outcomes(event)
        self._positions[message.topic() or "", message.partition() or 0] = (message.offset() or 0) + 1

    def _refuse(self, message: Message, rejection: Rejection) -> None:
        """Pass over what can never be read: a dead letter keeps it."""
        topic = message.topic() or ""
        self._health.error(f"{topic} at offset {message.offset()}: {rejection.message}")
        topic_id = topic_ids(admin(self._settings), [topic]).get(topic, uuid.UUID(int=0))
        self._producer.begin()
        produce_dead_letter(
            self._producer, message, rejection, stage="control", model="", topic_id=topic_id, now_ms=now_ms()
        )

    def _on_alert(self, alert: Alert) -> None:
        name = alert.model
        if name in self._specs:
            spec, route, state = self._specs[name], self._routes[name], self._states[name]
            self._order(name, *policy.on_alert(spec, route, state, alert, now_ms()))

    def _on_outcomes(self, batch: pa.RecordBatch) -> None:
        for name in set(batch["model"].to_pylist()) & set(self._specs):
            spec = self._specs[name]
            labels = first_labels(batch, name)
            if not labels.table.num_rows:
                continue
            state, route = self._states[name], self._routes[name]
            state = msgspec.structs.replace(
                state,
                labels=state.labels + labels.live_rows,
                joined_through_ms=max(state.joined_through_ms, labels.joined_through_ms),
            )
            if state.chain is not None and route.major:
                chain = Versions("live", f"{parse_version(route.major)[0]}.*")
                paired = differences(spec, labels.table, chain, Versions("shadow", route.major))
                state = msgspec.structs.replace(
                    state, chain=rollout.compare(state.chain, paired, spec.rollout.max_loss)
                )
            challenger = next((arm for arm in route.arms if arm.name == "challenger"), None)
            if state.challenge is not None and challenger is not None:
                live = Versions("live", f"{parse_version(route.champion)[0]}.*")
                paired = differences(spec, labels.table, Versions("shadow", challenger.version), live)
                state = msgspec.structs.replace(
                    state, challenge=rollout.compare(state.challenge, paired, spec.rollout.max_loss)
                )
            self._remember(name, state)
            self._decide(name, rollout.on_chain(spec, route, state, now_ms()))
            self._decide(name, rollout.on_challenge(spec, self._routes[name], self._states[name], now_ms()))
            self._order(name, *policy.on_labels(spec, self._routes[name], self._states[name], now_ms()))

    def _on_candidate(self, candidate: Candidate) -> None:
        name = candidate.model
        if name not in self._specs:
            return
        self._remember(name, self._states[name].answered(candidate.retrain_id))
        seen = {arm.version for arm in self._routes[name].arms}
        if candidate.version in seen:
            return  # The trainer published it again after a crash: it was decided on.
        golden_error = ""
        if candidate.passed and candidate.artifact:
            golden_error = check_golden(
                self._triton, self._store, name, candidate.artifact, unload=self._pruned(name)
            )
        self._decide(
            name,
            rollout.on_candidate(self._specs[name], self._routes[name], candidate, golden_error, now_ms()),
        )

    def _on_command(self, command: Command) -> None:
        name = command.model
        if name not in self._specs:
            return
        spec, route = self._specs[name], self._routes[name]
        if command.action == "retrain":
            self._order(name, *policy.on_retrain_command(spec, route, self._states[name], command, now_ms()))
            return
        if command.action == "train":
            self._order(name, *policy.on_train_command(spec, route, self._states[name], command, now_ms()))
            return
        self._decide(name, rollout.on_command(spec, route, command, self._store.artifacts(name), now_ms()))

    def _decide(self, name: str, decision: rollout.Decision | None) -> None:
        """Write the route table with its event into the transaction, and start new comparisons where due."""
        if decision is None:
            return
        old, new = self._routes[name], decision.route
        self._producer.begin()
        self._producer.produce(ROLLOUTS.name, msgspec.json.encode(decision.rollout), key=name.encode())
        self._producer.produce(ROUTES.name, msgspec.json.encode(new), key=name.encode())
        self._decided = True
        self._routes[name] = new
        margin = self._specs[name].rollout.max_loss
        state = self._states[name]
        if new.major != old.major or decision.rollout.action in ("revert", "rollback"):
            state = msgspec.structs.replace(state, chain=rollout.fresh_comparison(margin))
        if decision.rollout.action == "start_shadow":
            state = msgspec.structs.replace(state, challenge=rollout.fresh_comparison(margin))
        elif new.stage == "steady":
            state = msgspec.structs.replace(state, challenge=None)
        self._remember(name, state)
        counter("tidemill_decisions_total").labels(name, decision.rollout.action).inc()
        log.info(
            "%s: %s %s: %s", name, decision.rollout.action, decision.rollout.version, decision.rollout.reason
        )

    def _order(self, name: str, state: ModelState, retrain: Retrain | None) -> None:
        if retrain is None:
            return
        self._producer.begin()
        self._producer.produce(RETRAINS.name, msgspec.json.encode(retrain), key=name.encode())
        self._decided = True
        self._remember(name, state)
        log.info("%s: ordered %s %s: %s", name, retrain.kind, retrain.new_version, retrain.reason)

    def _remember(self, name: str, state: ModelState) -> None:
        if state != self._states[name]:
            self._states[name] = state
            self._touched.add(name)

    def _commit(self) -> None:
        """State, orders, decisions and offsets: all or nothing."""
        if not (self._positions or self._touched):
            return
        self._producer.begin()
        for name in self._touched:
            self._producer.produce(
                STATE.name, msgspec.json.encode(self._states[name]), key=(STATE_KEY + name).encode()
            )
        places = [
            TopicPartition(topic, partition, offset) for (topic, partition), offset in self._positions.items()
        ]
        if places:
            self._producer.send_offsets(places, self._consumer.consumer_group_metadata())
        self._producer.commit()
        self._positions.clear()
        self._touched.clear()
        if self._decided:
            self._report()
        self._decided = False
        self._saved_at = time.monotonic()

    def _restore(self) -> None:
        """Route tables and states as they were last committed."""
        routes = CompactedTopic(self._settings, ROUTES.name)
        for name in self._specs:
            if (value := routes.values.get(name.encode())) is not None:
                self._routes[name] = msgspec.json.decode(value, type=RouteTable)
        routes.close()
        states = CompactedTopic(self._settings, STATE.name)
        for name in self._specs:
            if (value := states.values.get((STATE_KEY + name).encode())) is not None:
                self._states[name] = msgspec.json.decode(value, type=ModelState)
        states.close()

    @callback
    def _assigned(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        client.assign(or_start(client, committed(client, partitions)))
        self._joined = True
        self._health.set_ready()

    @callback
    def _revoked(self, _client: Consumer, _partitions: list[TopicPartition]) -> None:
        self._joined = False

    def _pruned(self, name: str) -> str:
        """Remove what nobody can need any more; return the names, for Triton to forget."""
        gone = doomed(self._store.artifacts(name), self._routes[name], self._specs[name].rollout.keep_updates)
        for artifact in gone:
            self._store.remove(name, artifact)
        return ",".join(gone)

    def _report(self) -> None:
        for place in self._consumer.position(self._consumer.assignment()):
            low, high = self._consumer.get_watermark_offsets(
                TopicPartition(place.topic, place.partition), cached=True
            )
            at = place.offset if place.offset >= 0 else max(low, 0)
            self._health.stage(
                f"control {place.topic}:{place.partition}",
                Stage(lag_records=max(high - at, 0) if high >= 0 else 0),
            )
        self._health.detail(
            routes={name: msgspec.to_builtins(route) for name, route in self._routes.items()},
            models={
                name: {
                    "labels": state.labels,
                    "open_orders": sorted(state.orders),
                    "frozen": self._routes[name].frozen,
                }
                for name, state in self._states.items()
            },
        )


def decoded(message: Message) -> Alert | Candidate | Command | pa.RecordBatch:
    """What the record says.

    Raises:
        Rejection: nothing that belongs into its topic.
    """
    topic, value = message.topic() or "", message.value() or b""
    try:
        if topic == OUTCOMES.name:
            return decode_batch(value, READ)
        return msgspec.json.decode(value, type=_EVENTS[topic])
    except msgspec.MsgspecError as error:
        problem = str(error).partition("\n")[0]
        raise Rejection("undecodable", "", f"what belongs into {topic}", problem) from None
