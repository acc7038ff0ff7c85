"""When to retrain: enough new labels (an update), confirmed loss drift, a schedule or a person (a major).

A frozen model gets no order by itself; a person's order always goes out. At most one order of a kind is open at a time.
"""

from __future__ import annotations

import msgspec

from control.state import ModelState, Order
from schemas.events import Alert, Command, Evidence, Retrain, RetrainKind, RouteTable
from schemas.identity import name_id
from schemas.spec import ModelSpec

MAJOR_ALERTS = frozenset({"loss_drift"})
"""Alerts that order a major. Drift of the inputs alone does not: it says that the world moved, not that the model lost."""


def on_labels(
    spec: ModelSpec, route: RouteTable, state: ModelState, now_ms: int
) -> tuple[ModelState, Retrain | None]:
    """An update, once `update_every_labels` live predictions got their first label since the last one was ordered."""
    due = spec.train.update_every_labels
    if not due or not route.champion or route.frozen or "update" in state.orders:
        return state, None
    new = state.labels - state.labels_at_update
    if new < due:
        return state, None
    state = msgspec.structs.replace(state, labels_at_update=state.labels)
    evidence: Evidence = {"new_labels": new, "labels": state.labels}
    return _order(
        spec, route, state, "update", f"{new} new labels", f"labels/{state.labels}", evidence, now_ms
    )


def on_alert(
    spec: ModelSpec, route: RouteTable, state: ModelState, alert: Alert, now_ms: int
) -> tuple[ModelState, Retrain | None]:
    """A major, on confirmed loss drift, unless one is under way or was ordered within the cool-down."""
    cooled = now_ms - state.major_ordered_at_ms >= spec.train.major_cooldown_sec * 1000
    if alert.kind not in MAJOR_ALERTS or not cooled or not _may_start_major(route, state):
        return state, None
    evidence: Evidence = {"alert": alert.event_id, **alert.evidence}
    return _order(spec, route, state, "major", alert.message, f"alert/{alert.event_id}", evidence, now_ms)


def on_schedule(
    spec: ModelSpec, route: RouteTable, state: ModelState, now_ms: int
) -> tuple[ModelState, Retrain | None]:
    """A major, `major_every_sec` after the last."""
    every_ms = spec.train.major_every_sec * 1000
    last = state.major_ordered_at_ms or route.at_ms
    if not every_ms or now_ms - last < every_ms or not _may_start_major(route, state):
        return state, None
    slot = now_ms // every_ms
    evidence: Evidence = {"every_sec": spec.train.major_every_sec, "last_ms": last}
    return _order(spec, route, state, "major", "by schedule", f"schedule/{slot}", evidence, now_ms)


def on_retrain_command(
    spec: ModelSpec, route: RouteTable, state: ModelState, command: Command, now_ms: int
) -> tuple[ModelState, Retrain | None]:
    """A major, because a person said so; ignored while one is open (its order would be answered twice)."""
    if not route.champion or "major" in state.orders or route.stage != "steady":
        return state, None
    evidence: Evidence = {"command": command.event_id, "by": command.by}
    return _order(
        spec,
        route,
        state,
        "major",
        command.reason or "by hand",
        f"command/{command.event_id}",
        evidence,
        now_ms,
    )


def on_train_command(
    spec: ModelSpec, route: RouteTable, state: ModelState, command: Command, now_ms: int
) -> tuple[ModelState, Retrain]:
    """A version from a file, because a person said so: the first, or the next major."""
    evidence: Evidence = {
        "command": command.event_id, "by": command.by, "snapshot": command.snapshot, "rows": command.rows,
        "left_out": command.left_out,
    }  # fmt: skip
    state, order = _order(
        spec,
        route,
        state,
        "initial",
        command.reason or "from a file",
        f"command/{command.event_id}",
        evidence,
        now_ms,
    )
    return state, order if command.seed is None else msgspec.structs.replace(order, seed=command.seed)


def _may_start_major(route: RouteTable, state: ModelState) -> bool:
    return (
        bool(route.champion) and not route.frozen and route.stage == "steady" and "major" not in state.orders
    )


def _order(
    spec: ModelSpec,
    route: RouteTable,
    state: ModelState,
    kind: RetrainKind,
    reason: str,
    dedupe_key: str,
    evidence: Evidence,
    now_ms: int,
) -> tuple[ModelState, Retrain]:
    version = state.next_update(route.champion) if kind == "update" else state.next_major(route.champion)
    # The id holds what makes the order this order, not the clock: decided again after a crash it is the same order.
    retrain_id = str(name_id("retrain", spec.name, version, dedupe_key))
    live = (arm.artifact for arm in route.arms if arm.role == "live" and arm.version == route.champion)
    state = state.ordered(Order(retrain_id=retrain_id, kind=kind, version=version, at_ms=now_ms))
    if kind == "major":
        state = msgspec.structs.replace(state, major_ordered_at_ms=now_ms)
    return state, Retrain(
        event_id=retrain_id,
        model=spec.name,
        at_ms=now_ms,
        kind=kind,
        reason=reason,
        base_version=route.champion,
        base_artifact=next(live, ""),
        new_version=version,
        dedupe_key=f"{spec.name}/{dedupe_key}",
        labels_through_ms=0 if kind == "initial" else state.joined_through_ms,
        seed=name_id("seed", retrain_id).int % (1 << 31),
        evidence=evidence,
    )
