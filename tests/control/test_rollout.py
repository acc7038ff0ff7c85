"""Which version answers, and why: the rollout's rules as pure functions."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from control import rollout
from control.prune import doomed
from control.state import ModelState
from schemas.events import Candidate, Command, RetrainKind, RouteTable
from schemas.spec import ModelSpec, decode_spec

NOW = 1_700_000_000_000
MARGIN = 0.01


def spec(**rollout_keys: object) -> ModelSpec:
    lines = "\n".join(f"{key} = {msgspec.json.encode(value).decode()}" for key, value in rollout_keys.items())
    return decode_spec(
        f"""
        name = "m"
        task = "binary"
        classes = ["down", "up"]
        module = "model:M"
        [features]
        x = {{ type = "float" }}
        [rollout]
        shadow_rows = 500
        {lines}
        """,
        "test",
    )


def candidate(version: str, kind: RetrainKind, base: str = "", passed: bool = True) -> Candidate:
    return Candidate(
        event_id=f"candidate-{version}", model="m", at_ms=NOW, retrain_id=f"retrain-{version}", kind=kind, version=version,
        artifact=f"{version}-{'0' * 12}" if passed else "", base_version=base, passed=passed, reason="" if passed else "worse",
    )  # fmt: skip


def introduced(model: ModelSpec) -> RouteTable:
    return rollout.on_candidate(model, rollout.empty_route("m"), candidate("1.0", "initial"), "", NOW).route


def updated(model: ModelSpec) -> RouteTable:
    return rollout.on_candidate(model, introduced(model), candidate("1.1", "update", "1.0"), "", NOW).route


def arms(route: RouteTable) -> dict[str, tuple[str, str]]:
    return {arm.name: (arm.role, arm.version) for arm in route.arms}


def differences(mean: float, rows: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.random.default_rng(5).choice(
        [-1.0, 0.0, 1.0], p=[0.1 - mean / 2, 0.8, 0.1 + mean / 2], size=rows
    )


def test_the_first_version_goes_live_alone() -> None:
    route = introduced(spec())
    assert arms(route) == {"champion": ("live", "1.0")}
    assert (route.revision, route.champion, route.major) == (1, "1.0", "1.0")


def test_an_update_takes_over_and_its_major_answers_in_shadow() -> None:
    route = updated(spec())
    assert arms(route) == {"champion": ("live", "1.1"), "major": ("shadow", "1.0")}
    assert route.previous.startswith("1.0-")


def test_the_baseline_answers_in_one_shadow_arm_though_it_is_also_the_major() -> None:
    assert arms(updated(spec(baseline="1.0"))) == {"champion": ("live", "1.1"), "baseline": ("shadow", "1.0")}


@pytest.mark.parametrize(
    ("change", "golden_error", "reason"),
    [
        (candidate("1.2", "update", "1.1", passed=False), "", "worse"),
        (candidate("1.2", "update", "1.1"), "golden inference: scores differ", "scores differ"),
        (candidate("1.2", "update", "1.0"), "", "no longer the champion"),
    ],
)
def test_a_candidate_is_refused_and_the_arms_stay(change: Candidate, golden_error: str, reason: str) -> None:
    before = updated(spec())
    decision = rollout.on_candidate(spec(), before, change, golden_error, NOW)
    assert decision.rollout.action == "refuse"
    assert reason in decision.rollout.reason
    assert decision.route.arms == before.arms
    assert decision.route.revision == before.revision + 1


def test_a_major_waits_in_shadow_and_is_promoted_when_it_is_not_worse() -> None:
    model = spec(baseline="1.0")
    route = rollout.on_candidate(model, updated(model), candidate("2.0", "major", "1.1"), "", NOW).route
    assert arms(route)["challenger"] == ("shadow", "2.0")
    assert route.champion == "1.1"
    challenge = rollout.compare(rollout.fresh_comparison(MARGIN), differences(-0.05, 3000), MARGIN)
    decision = rollout.on_challenge(model, route, ModelState(challenge=challenge), NOW)
    assert decision is not None
    assert decision.rollout.action == "promote_major"
    assert arms(decision.route) == {"champion": ("live", "2.0"), "baseline": ("shadow", "1.0")}
    assert decision.route.previous.startswith("1.1-")
    assert decision.rollout.evidence["rows"] == 3000


def test_a_major_is_not_promoted_before_it_has_its_rows() -> None:
    model = spec()
    route = rollout.on_candidate(model, updated(model), candidate("2.0", "major", "1.1"), "", NOW).route
    challenge = rollout.compare(rollout.fresh_comparison(MARGIN), differences(-0.2, 400), MARGIN)
    assert rollout.on_challenge(model, route, ModelState(challenge=challenge), NOW) is None


def test_a_worse_major_is_refused() -> None:
    model = spec()
    route = rollout.on_candidate(model, updated(model), candidate("2.0", "major", "1.1"), "", NOW).route
    challenge = rollout.compare(rollout.fresh_comparison(MARGIN), differences(0.08, 3000), MARGIN)
    decision = rollout.on_challenge(model, route, ModelState(challenge=challenge), NOW)
    assert decision is not None
    assert (decision.rollout.action, decision.route.stage) == ("refuse", "steady")
    assert "challenger" not in arms(decision.route)


def test_manual_approval_waits_for_a_person() -> None:
    model = spec(approval="manual")
    route = rollout.on_candidate(model, updated(model), candidate("2.0", "major", "1.1"), "", NOW).route
    challenge = rollout.compare(rollout.fresh_comparison(MARGIN), differences(-0.05, 3000), MARGIN)
    waiting = rollout.on_challenge(model, route, ModelState(challenge=challenge), NOW)
    assert waiting is not None
    assert (waiting.rollout.action, waiting.route.champion) == ("await_approval", "1.1")
    approve = Command(event_id="c", model="m", at_ms=NOW, action="approve", by="ann")
    approved = rollout.on_command(model, waiting.route, approve, [], NOW)
    assert approved is not None
    assert (approved.route.champion, approved.rollout.by) == ("2.0", "ann")


def test_a_chain_of_updates_that_is_worse_than_its_major_is_reverted() -> None:
    model = spec()
    chain = rollout.compare(rollout.fresh_comparison(MARGIN), differences(0.08, 3000), MARGIN)
    decision = rollout.on_chain(model, updated(model), ModelState(chain=chain), NOW)
    assert decision is not None
    assert (decision.rollout.action, decision.route.champion) == ("revert", "1.0")


def test_a_chain_that_is_as_good_stays() -> None:
    chain = rollout.compare(rollout.fresh_comparison(MARGIN), differences(0.0, 3000), MARGIN)
    assert rollout.on_chain(spec(), updated(spec()), ModelState(chain=chain), NOW) is None


def test_a_rollback_returns_to_the_previous_champion_and_freezes() -> None:
    command = Command(event_id="c", model="m", at_ms=NOW, action="rollback", by="ann")
    decision = rollout.on_command(spec(), updated(spec()), command, [], NOW)
    assert decision is not None
    assert (decision.route.champion, decision.route.frozen) == ("1.0", True)
    refused = rollout.on_candidate(spec(), decision.route, candidate("1.2", "update", "1.0"), "", NOW)
    assert refused.rollout.action == "refuse"


def test_a_rollback_to_a_version_that_is_not_there_changes_nothing() -> None:
    command = Command(event_id="c", model="m", at_ms=NOW, action="rollback", version="7.0")
    assert rollout.on_command(spec(), updated(spec()), command, [], NOW) is None


def test_a_pass_leaves_the_arms_and_later_decisions_keep_it() -> None:
    model = spec()
    command = Command(
        event_id="c", model=model.name, at_ms=5000, action="pass", by="ann", reason="a known bad producer"
    )
    decision = rollout.on_command(model, updated(model), command, [], 6000)
    assert decision is not None
    assert decision.route.rejections_pass_until_ms == 5000
    assert (decision.rollout.action, decision.rollout.by, decision.rollout.reason) == (
        "pass",
        "ann",
        command.reason,
    )
    assert arms(decision.route) == arms(updated(model))
    older = msgspec.structs.replace(command, at_ms=4000)
    for later in (older, msgspec.structs.replace(command, action="freeze")):
        following = rollout.on_command(model, decision.route, later, [], 7000)
        assert following is not None
        assert following.route.rejections_pass_until_ms == 5000


def test_revisions_only_grow_and_ids_repeat_with_the_decision() -> None:
    again = [
        rollout.on_candidate(spec(), introduced(spec()), candidate("1.1", "update", "1.0"), "", NOW + n)
        for n in (0, 5)
    ]
    assert again[0].rollout.event_id == again[1].rollout.event_id
    assert again[0].route.revision == 2


def test_old_updates_are_pruned_and_what_is_needed_is_kept() -> None:
    model = spec()
    route = updated(model)
    for number in range(2, 9):
        route = rollout.on_candidate(
            model, route, candidate(f"1.{number}", "update", f"1.{number - 1}"), "", NOW
        ).route
    names = [f"1.{number}-{'0' * 12}" for number in range(10)]
    assert doomed(names, route, keep_updates=3) == [f"1.{number}-{'0' * 12}" for number in range(1, 5)]
