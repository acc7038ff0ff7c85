"""When a retrain is ordered."""

from __future__ import annotations

import msgspec
import pytest

from control import policy, rollout
from control.state import ModelState
from schemas.events import Alert, Candidate, Command, RouteTable
from schemas.spec import ModelSpec, decode_spec

NOW = 1_700_000_000_000


@pytest.fixture
def spec() -> ModelSpec:
    return decode_spec(
        """
        name = "m"
        task = "binary"
        classes = ["down", "up"]
        module = "model:M"
        [features]
        x = { type = "float" }
        [train]
        update_every_labels = 100
        major_cooldown_sec = 60
        """,
        "test",
    )


@pytest.fixture
def route(spec: ModelSpec) -> RouteTable:
    first = Candidate(
        event_id="c", model="m", at_ms=NOW, retrain_id="r", kind="initial", version="1.0", artifact="1.0-" + "0" * 12,
        base_version="", passed=True,
    )  # fmt: skip
    return rollout.on_candidate(spec, rollout.empty_route("m"), first, "", NOW).route


def alert(kind: str = "loss_drift") -> Alert:
    fields = {
        "event_id": "a", "model": "m", "at_ms": NOW, "kind": kind, "severity": "normal", "subject": "loss",
        "version": "1.0", "message": "error rose", "evidence": {"before": 0.2, "after": 0.3},
    }  # fmt: skip
    return msgspec.convert(fields, Alert)


def test_an_update_is_ordered_once_enough_labels_came(spec: ModelSpec, route: RouteTable) -> None:
    state, order = policy.on_labels(spec, route, ModelState(labels=99), NOW)
    assert order is None
    state, order = policy.on_labels(
        spec, route, msgspec.structs.replace(state, labels=100, joined_through_ms=NOW - 5), NOW
    )
    assert order is not None
    assert (order.kind, order.base_version, order.new_version) == ("update", "1.0", "1.1")
    assert order.labels_through_ms == NOW - 5
    state = msgspec.structs.replace(state, labels=500)
    assert policy.on_labels(spec, route, state, NOW)[1] is None, "one order of a kind is open at a time"
    state, again = policy.on_labels(spec, route, state.answered(order.event_id), NOW)
    assert again is not None
    assert again.new_version == "1.2", "a version number is never used twice"


def test_a_frozen_model_and_one_without_a_version_get_no_order(spec: ModelSpec, route: RouteTable) -> None:
    frozen = msgspec.structs.replace(route, frozen=True)
    for other in (frozen, rollout.empty_route("m")):
        assert policy.on_labels(spec, other, ModelState(labels=1000), NOW)[1] is None
        assert policy.on_alert(spec, other, ModelState(), alert(), NOW)[1] is None


def test_loss_drift_orders_a_major_and_the_cool_down_holds_the_next(
    spec: ModelSpec, route: RouteTable
) -> None:
    state, order = policy.on_alert(spec, route, ModelState(), alert(), NOW)
    assert order is not None
    assert (order.kind, order.new_version, order.reason) == ("major", "2.0", "error rose")
    assert order.evidence["after"] == 0.3
    state = state.answered(order.event_id)
    assert policy.on_alert(spec, route, state, alert(), NOW + 59_000)[1] is None
    later = policy.on_alert(spec, route, state, alert(), NOW + 61_000)[1]
    assert later is not None
    assert later.new_version == "3.0"


def test_input_drift_alone_orders_nothing(spec: ModelSpec, route: RouteTable) -> None:
    assert policy.on_alert(spec, route, ModelState(), alert("input_drift"), NOW)[1] is None


def test_an_order_decided_again_after_a_crash_has_the_same_id_and_seed(
    spec: ModelSpec, route: RouteTable
) -> None:
    orders = [policy.on_alert(spec, route, ModelState(), alert(), NOW + late)[1] for late in (0, 700)]
    assert orders[0] is not None
    assert orders[1] is not None
    assert (orders[0].event_id, orders[0].seed) == (orders[1].event_id, orders[1].seed)


def train(seed: int | None = 5) -> Command:
    return Command(
        event_id="c1",
        model="m",
        at_ms=NOW,
        action="train",
        by="ann",
        snapshot="0" * 64,
        rows=90,
        left_out=10,
        seed=seed,
    )


def test_a_file_trains_the_first_version_and_names_its_command(spec: ModelSpec) -> None:
    state, order = policy.on_train_command(spec, rollout.empty_route("m"), ModelState(), train(), NOW)
    assert (order.kind, order.new_version, order.base_version, order.base_artifact) == (
        "initial",
        "1.0",
        "",
        "",
    )
    assert (order.seed, order.labels_through_ms) == (5, 0)
    assert order.evidence == {"command": "c1", "by": "ann", "snapshot": "0" * 64, "rows": 90, "left_out": 10}
    _, second = policy.on_train_command(spec, rollout.empty_route("m"), state, train(), NOW)
    assert second.new_version == "2.0", "1.0 is being trained"
    refused = state.answered(order.event_id)
    assert (
        policy.on_train_command(spec, rollout.empty_route("m"), refused, train(), NOW)[1].new_version == "1.0"
    )


def test_a_file_and_drift_never_get_one_number(spec: ModelSpec, route: RouteTable) -> None:
    state, drift = policy.on_alert(spec, route, ModelState(joined_through_ms=NOW), alert(), NOW)
    _, file = policy.on_train_command(spec, route, state, train(seed=None), NOW)
    assert drift is not None
    assert (drift.new_version, file.new_version) == ("2.0", "3.0")
    assert (file.base_version, file.base_artifact) == ("1.0", "1.0-" + "0" * 12)
    assert file.seed == policy.on_train_command(spec, route, state, train(seed=None), NOW + 9)[1].seed
