"""The control path: each order to train is followed once and answered once, versions and revisions are numbered without gap or repeat.

Nobody's answers change by it: updates fail their gate and majors find another one being measured (`rows.SPEC`, `World.write_route`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

import msgspec
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer

from benchmarks.faults.account import Account
from benchmarks.faults.rows import LIVE_ARM, LIVE_VERSION, MODEL, SHADOW_ARM, SHADOW_VERSION
from benchmarks.faults.settle import settled
from benchmarks.faults.topic import partition_records
from runtime.artifacts import ArtifactStore
from schemas.artifact import parse_version
from schemas.errors import ArtifactError
from schemas.events import Candidate, Retrain, Rollout, RouteTable
from schemas.topics import CANDIDATES, RETRAINS, ROLLOUTS, ROUTES, Topic

E = TypeVar("E", Retrain, Candidate, Rollout, RouteTable)
ARMS: Final = [(LIVE_ARM, "live", LIVE_VERSION), (SHADOW_ARM, "shadow", SHADOW_VERSION)]
FIRST_REVISION: Final = 1
"""The harness's own route."""
CRASHED: Final = "training failed:"
"""How the refusal begins that says that training raised an error."""


class Log(NamedTuple):
    """What Kafka holds of the control path, each topic in the order of its log."""

    retrains: Sequence[Retrain]
    candidates: Sequence[Candidate]
    rollouts: Sequence[Rollout]
    routes: Sequence[RouteTable]


def check(
    reader: Consumer, client: Client, store: ArtifactStore, commands: Sequence[str], account: Account, deadline_sec: float,
    still_sec: float,
) -> None:  # fmt: skip
    """Compare as soon as nothing is wrong, or as `settled` gives up: the last orders are answered a moment after the load's end."""

    def look() -> tuple[list[str], Log]:
        log = Log(
            _events(reader, RETRAINS, Retrain), _events(reader, CANDIDATES, Candidate),
            _events(reader, ROLLOUTS, Rollout), _events(reader, ROUTES, RouteTable),
        )  # fmt: skip
        return [*compare(commands, log), *_differences(client, log)], log

    problems, log = settled(look, lambda found: not found[0], deadline_sec, still_sec)
    problems += _half_written(store, log.candidates)
    account.orders = len(log.retrains)
    account.orders_refused = sum(not candidate.artifact for candidate in log.candidates)
    for problem in problems:
        account.note("orders_mismatch", 1, problem)


def compare(commands: Sequence[str], log: Log) -> list[str]:
    """What is wrong, one line each. `commands` are the ids of the `train` commands in the order in which they were given."""
    return [*_orders(commands, log.retrains), *_answers(log), *_decisions(log)]


def _orders(commands: Sequence[str], retrains: Sequence[Retrain]) -> list[str]:
    """Each command is one order; updates are numbered 2.1, 2.2, …, majors 3.0, 4.0, …"""
    majors = [order for order in retrains if order.kind != "update"]
    updates = [order for order in retrains if order.kind == "update"]
    ordered = dict.fromkeys(order.dedupe_key.rpartition("/")[2] for order in majors)
    given = dict.fromkeys(commands)
    live = parse_version(LIVE_VERSION)[0]
    return [
        *(f"command {name} has no order" for name in given if name not in ordered),
        *(f"order {name} is of no command" for name in ordered if name not in given),
        *_repeated("order", (order.event_id for order in retrains)),
        *_repeated("dedupe key", (order.dedupe_key for order in retrains)),
        *_misnumbered(majors, [f"{live + 1 + n}.0" for n in range(len(majors))]),
        *_misnumbered(updates, [f"{live}.{1 + n}" for n in range(len(updates))]),
    ]


def _answers(log: Log) -> list[str]:
    """Each order has one candidate, which is what was ordered."""
    orders = {order.event_id: order for order in log.retrains}
    answered = Counter(candidate.retrain_id for candidate in log.candidates)
    problems = [
        f"{order.new_version} has no candidate" for name, order in orders.items() if name not in answered
    ]
    problems += _repeated("candidate of order", (candidate.retrain_id for candidate in log.candidates))
    for candidate in log.candidates:
        order = orders.get(candidate.retrain_id)
        if order is None:
            problems.append(f"candidate {candidate.version} was not ordered")
        elif (candidate.version, candidate.kind) != (order.new_version, order.kind):
            problems.append(f"candidate {candidate.version} answers the order of {order.new_version}")
        elif candidate.reason.startswith(CRASHED):
            problems.append(f"{candidate.version}: {candidate.reason}")
        elif candidate.passed != (candidate.kind != "update" and candidate.artifact != ""):
            problems.append(f"candidate {candidate.version} passed: {candidate.passed}: {candidate.reason}")
    return problems


def _decisions(log: Log) -> list[str]:
    """Each candidate is decided on once, which changes nobody's arm; revisions are numbered without gap or repeat."""
    decided = Counter(str(rollout.evidence.get("candidate")) for rollout in log.rollouts)
    last = max(log.routes, key=lambda route: route.revision, default=None)
    wanted = [*range(FIRST_REVISION + 1, FIRST_REVISION + 1 + len(log.rollouts))]
    problems = [
        f"nothing is decided on candidate {candidate.version}"
        for candidate in log.candidates
        if candidate.event_id not in decided
    ]
    problems += _repeated("decision on candidate", decided.elements())
    problems += [
        f"{rollout.version}: {rollout.action}: {rollout.reason}"
        for rollout in log.rollouts
        if rollout.action != "refuse"
    ]
    if [rollout.revision for rollout in log.rollouts] != wanted:
        problems.append(f"revisions of decisions: {[rollout.revision for rollout in log.rollouts]}")
    if last is None or last.revision != FIRST_REVISION + len(log.rollouts):
        problems.append(
            f"the last route has revision {last and last.revision} after {len(log.rollouts)} decisions"
        )
    elif [(arm.name, arm.role, arm.version) for arm in last.arms] != ARMS:
        problems.append(f"the last route has the arms {last.arms}")
    return problems


def _repeated(what: str, names: Iterable[str]) -> list[str]:
    return [f"{what} {name} {count} times" for name, count in Counter(names).items() if count > 1]


def _misnumbered(orders: Sequence[Retrain], wanted: Sequence[str]) -> list[str]:
    pairs = zip([order.new_version for order in orders], wanted, strict=True)
    return [f"order of {found}, expected {version}" for found, version in pairs if found != version]


def _differences(client: Client, log: Log) -> list[str]:
    """ClickHouse has the same events."""
    problems = []
    for table, events in (
        ("retrains", log.retrains),
        ("candidates", log.candidates),
        ("rollouts", log.rollouts),
    ):
        found = client.query(
            f"SELECT event_id FROM internal.{table} FINAL WHERE model = {{model:String}}",
            parameters={"model": MODEL},
        ).result_rows
        different = {str(row[0]) for row in found} ^ {event.event_id for event in events}
        problems += [f"{table}: event {name} is in Kafka or in ClickHouse only" for name in sorted(different)]
    return problems


def _half_written(store: ArtifactStore, candidates: Sequence[Candidate]) -> list[str]:
    """Everything that has an artifact's name is one, and every candidate's is there."""
    problems = []
    for name in sorted({*store.artifacts(MODEL), *(one.artifact for one in candidates if one.artifact)}):
        try:
            store.open(MODEL, name)
        except ArtifactError as error:
            problems.append(str(error))
    return problems


def _events(reader: Consumer, topic: Topic, kind: type[E]) -> list[E]:
    decoder = msgspec.json.Decoder(kind)
    found = []
    for messages in partition_records(reader, topic.name, 0):
        found += [decoder.decode(message.value() or b"") for message in messages]
    return [event for event in found if event.model == MODEL]
