"""The account of the control path: each command is one order, each order one candidate, each candidate one decision."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from benchmarks.faults.orders import Log, compare
from benchmarks.faults.rows import LIVE_VERSION, MODEL, SHADOW_VERSION
from schemas.events import Arm, Candidate, Retrain, RetrainKind, Rollout, RouteTable

COMMANDS = ["c0", "c1"]


def order(version: str, kind: RetrainKind, key: str) -> Retrain:
    return Retrain(
        event_id=f"order of {version}", model=MODEL, at_ms=0, kind=kind, reason="", base_version="", base_artifact="",
        new_version=version, dedupe_key=f"{MODEL}/{key}", labels_through_ms=0, seed=0, evidence={},
    )  # fmt: skip


def candidate(version: str, kind: RetrainKind, **changes: Any) -> Candidate:
    made = Candidate(
        event_id=f"candidate {version}", model=MODEL, at_ms=0, retrain_id=f"order of {version}", kind=kind, version=version,
        artifact=f"{version}-0123456789ab", base_version="", passed=kind != "update",
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def rollout(version: str, revision: int) -> Rollout:
    return Rollout(
        event_id=f"rollout {revision}", model=MODEL, at_ms=0, action="refuse", version=version, artifact="", revision=revision,
        stage="shadow", reason="", evidence={"candidate": f"candidate {version}"},
    )  # fmt: skip


def route(revision: int, live: str = LIVE_VERSION) -> RouteTable:
    arms = [
        Arm(name="champion", role="live", version=live, artifact=""),
        Arm(name="challenger", role="shadow", version=SHADOW_VERSION, artifact=""),
    ]
    return RouteTable(
        event_id=f"route {revision}", model=MODEL, at_ms=0, revision=revision, stage="shadow", arms=arms
    )


def right() -> Log:
    """Two commands and an update between them."""
    kinds: dict[str, RetrainKind] = {"3.0": "initial", "2.1": "update", "4.0": "initial"}
    keys = {"3.0": "command/c0", "2.1": "labels/7", "4.0": "command/c1"}
    return Log(
        [order(version, kind, keys[version]) for version, kind in kinds.items()],
        [candidate(version, kind) for version, kind in kinds.items()],
        [rollout(version, n) for n, version in enumerate(kinds, start=2)],
        [route(n) for n in range(1, 5)],
    )


def test_the_right_log_is_right() -> None:
    assert compare(COMMANDS, right()) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda log: log._replace(retrains=log.retrains[1:]),
        lambda log: log._replace(retrains=[*log.retrains, log.retrains[0]]),
        lambda log: log._replace(retrains=[*log.retrains, order("2.3", "update", "labels/9")]),
        lambda log: log._replace(retrains=[*log.retrains, order("5.0", "initial", "command/nobody")]),
        lambda log: log._replace(candidates=log.candidates[1:]),
        lambda log: log._replace(candidates=[*log.candidates, log.candidates[1]]),
        lambda log: log._replace(candidates=[*log.candidates, candidate("7.0", "initial")]),
        lambda log: log._replace(candidates=[candidate("3.0", "update"), *log.candidates[1:]]),
        lambda log: log._replace(candidates=[candidate("3.0", "initial", passed=False), *log.candidates[1:]]),
        lambda log: log._replace(
            candidates=[candidate("3.0", "initial", passed=False, artifact="", reason="training failed: KeyError"), *log.candidates[1:]]
        ),
        lambda log: log._replace(rollouts=log.rollouts[:-1], routes=log.routes[:-1]),
        lambda log: log._replace(rollouts=[*log.rollouts, rollout("3.0", 5)], routes=[*log.routes, route(5)]),
        lambda log: log._replace(rollouts=[log.rollouts[1], log.rollouts[0], log.rollouts[2]]),
        lambda log: log._replace(routes=log.routes[:-1]),
        lambda log: log._replace(routes=[*log.routes[:-1], route(4, live="2.1")]),
    ],
)  # fmt: skip
def test_a_spoiled_log_is_noticed(spoil: Callable[[Log], Log]) -> None:
    assert compare(COMMANDS, spoil(right()))


def test_an_order_that_was_refused_with_a_reason_is_answered() -> None:
    log = right()
    refused = candidate("2.1", "update", artifact="", passed=False, reason="no labels joined up to 0 ms")
    assert compare(COMMANDS, log._replace(candidates=[log.candidates[0], refused, log.candidates[2]])) == []
