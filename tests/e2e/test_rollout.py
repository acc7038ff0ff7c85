"""Majors, reverts and a person's word on the real stack, with toys whose truth is turned round at will."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client as Warehouse

from cli.models import read_routes
from features.columns import Columns
from runtime.artifacts import ArtifactStore
from runtime.clock import now_ms
from runtime.kafka import producer
from schemas.artifact import WEIGHTS
from schemas.events import Candidate, RouteTable
from schemas.topics import CANDIDATES
from tests.e2e.conftest import Workshop
from tests.e2e.toys import World
from tests.triton_models.artifacts import write_version
from tests.waiting import until
from tidemill import Client

pytestmark = pytest.mark.stack
STEP_ROWS = 20
GOLDEN = Columns(
    np.random.default_rng(7).uniform(-1, 1, (32, 2)).astype(np.float32), pa.array([], pa.string())
)


def route(workshop: Workshop, model: str) -> RouteTable:
    return read_routes(workshop.settings)[model]


def champion_is(workshop: Workshop, model: str, version: str) -> None:
    until(lambda: route(workshop, model).champion == version, f"{model} {version} is champion")


def stage_is(workshop: Workshop, model: str, stage: str) -> None:
    until(lambda: route(workshop, model).stage == stage, f"{model} is in stage {stage}")


def live_until(world: World, client: Client, model: str, reached: Any, limit: int = 400) -> None:
    """Rows with their labels, a few at a time, until something has been decided."""
    for _ in range(limit // STEP_ROWS):
        world.live(client, model, STEP_ROWS)
        if reached():
            return
    until(reached, f"a decision after {limit} rows")


def answers(workshop: Workshop, client: Client, model: str, version: str) -> None:
    """The champion that was decided on is what answers, once the gateway has its route."""
    until(lambda: set(World(seed=9).live(client, model, 5)) == {version}, f"{model} {version} answers")


def counted(workshop: Workshop, model: str) -> int:
    """Labels that the control room knows of."""
    return int(workshop.process("control")["detail"]["detail"]["models"][model]["labels"])


def rollouts(analyst: Warehouse, model: str, action: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(version, by, evidence) of each such decision."""
    found = analyst.query(
        "SELECT version, by, evidence FROM rollouts WHERE model = {model:String} AND action = {action:String} ORDER BY revision",
        parameters={"model": model, "action": action},
    ).result_rows
    return [(version, by, json.loads(evidence)) for version, by, evidence in found]


def test_a_better_major_is_measured_in_shadow_and_promoted_by_itself(
    workshop: Workshop, served: str, client: Client, analyst: Warehouse
) -> None:
    world = World(seed=2)
    assert set(world.live(client, served, 120)) == {"1.0"}
    until(lambda: counted(workshop, served) >= 120, "every label counts")
    workshop.run("./tidemill models retrain automatic --reason 'it is wrong'")
    stage_is(workshop, served, "shadow")
    assert route(workshop, served).champion == "1.0"
    live_until(world, client, served, lambda: route(workshop, served).champion == "2.0")
    stage_is(workshop, served, "steady")
    answers(workshop, client, served, "2.0")
    ((version, by, evidence),) = until(
        lambda: rollouts(analyst, served, "promote_major"), "the promotion is a row"
    )
    assert (version, by) == ("2.0", "controller")
    assert evidence["rows"] >= 60
    assert evidence["mean_difference"] < -0.5
    shadow = "SELECT version, count() FROM shadow_predictions WHERE model = 'automatic' AND arm = 'challenger' GROUP BY version"
    # The decision rests on what Kafka has; its rows are on their way into ClickHouse.
    until(
        lambda: sum(rows for _, rows in analyst.query(shadow).result_rows) >= 60,
        "what it was measured on is rows",
    )
    assert [version for version, _ in analyst.query(shadow).result_rows] == ["2.0"]


def test_updates_that_lose_against_their_major_are_reverted_by_themselves(
    workshop: Workshop, client: Client, analyst: Warehouse, tmp_path: Path
) -> None:
    world = World(seed=3)
    path = world.file(tmp_path / "file.csv", 400)
    assert workshop.tidemill("train", "updated", "--from", str(path), "--seed", "1")["action"] == "introduce"
    # The labels of one update's worth are wrong: the update learns them and goes live, as it should.
    assert set(world.live(client, "updated", 200, flipped=True)) == {"1.0"}
    champion_is(workshop, "updated", "1.1")
    # The truth comes back: 1.1 loses against 1.0, which still answers in shadow.
    live_until(world, client, "updated", lambda: route(workshop, "updated").champion == "1.0", limit=160)
    ((version, by, evidence),) = until(lambda: rollouts(analyst, "updated", "revert"), "the revert is a row")
    assert (version, by) == ("1.0", "controller")
    assert evidence["mean_difference"] > 0.5
    answers(workshop, client, "updated", "1.0")


def test_a_major_waits_for_a_person_where_the_spec_says_so(
    workshop: Workshop, client: Client, analyst: Warehouse, tmp_path: Path
) -> None:
    world = World(seed=4)
    wrong = world.file(tmp_path / "file.csv", 400, flipped=True)
    assert workshop.tidemill("train", "manual", "--from", str(wrong), "--seed", "1")["version"] == "1.0"
    assert set(world.live(client, "manual", 120)) == {"1.0"}
    until(lambda: counted(workshop, "manual") >= 120, "every label counts")
    workshop.run("./tidemill models retrain manual")
    stage_is(workshop, "manual", "shadow")
    live_until(world, client, "manual", lambda: route(workshop, "manual").stage == "approval")
    assert route(workshop, "manual").champion == "1.0"
    approved = workshop.tidemill("models", "approve", "manual", "--reason", "looks good")
    assert (approved["champion"], approved["stage"]) == ("2.0", "steady")
    answers(workshop, client, "manual", "2.0")
    until(lambda: rollouts(analyst, "manual", "await_approval"), "the wait is a row")
    ((version, by, evidence),) = until(
        lambda: rollouts(analyst, "manual", "promote_major"), "the promotion is a row"
    )
    assert (version, by != "controller", evidence["reason"]) == ("2.0", True, "looks good")


def test_a_person_rolls_back_at_once_and_what_is_frozen_orders_nothing(
    workshop: Workshop, client: Client, analyst: Warehouse
) -> None:
    before = route(workshop, "updated")
    rolled = workshop.tidemill("models", "rollback", "updated", "--reason", "holiday")
    assert (rolled["champion"], rolled["frozen"]) == (before.previous.partition("-")[0], True)
    answers(workshop, client, "updated", rolled["champion"])
    orders = "SELECT count() FROM retrains WHERE model = 'updated'"
    ordered = analyst.query(orders).result_rows
    known = counted(workshop, "updated")
    World(seed=5).live(client, "updated", 220)  # more than an update's worth
    until(lambda: counted(workshop, "updated") >= known + 220, "the control room counts every label")
    frozen = route(workshop, "updated")
    assert (frozen.revision, frozen.champion) == (rolled["revision"], rolled["champion"])
    assert analyst.query(orders).result_rows == ordered
    assert workshop.tidemill("models", "unfreeze", "updated")["frozen"] is False


@pytest.mark.parametrize("fault", ["altered", "golden"])
def test_a_candidate_that_is_not_what_it_says_is_refused_and_the_champion_answers_on(
    workshop: Workshop, served: str, client: Client, analyst: Warehouse, fault: str
) -> None:
    settings = workshop.settings
    store = ArtifactStore(settings.artifacts_dir)
    champion = route(workshop, served).champion
    number = {"altered": "7.0", "golden": "8.0"}[fault]
    artifact = write_version(
        store, settings.models_dir, number, model=served, columns=GOLDEN,
        golden_error=0.5 if fault == "golden" else 0.0,
    ).artifact  # fmt: skip
    if fault == "altered":
        weights = settings.artifacts_dir / served / artifact / WEIGHTS
        changed = bytearray(weights.read_bytes())
        changed[-1] ^= 1
        weights.write_bytes(changed)
    candidate = Candidate(
        event_id=f"faulty-{fault}", model=served, at_ms=now_ms(), retrain_id=f"order-{fault}", kind="major",
        version=number, artifact=artifact, base_version=champion, passed=True,
    )  # fmt: skip
    sender = producer(settings)
    sender.produce(CANDIDATES.name, msgspec.json.encode(candidate), key=served.encode())
    assert sender.flush(10) == 0
    asked = "SELECT reason FROM rollouts WHERE model = 'automatic' AND action = 'refuse' AND version = {version:String}"
    ((reason,),) = until(
        lambda: analyst.query(asked, parameters={"version": number}).result_rows, "the refusal is a row"
    )
    assert {"altered": "wrong hash", "golden": "scores differ"}[fault] in reason
    assert route(workshop, served).champion == champion
    answers(workshop, client, served, champion)
