"""Which version answers: every decision is a new route table with a higher revision and an event with its evidence.

An update takes over at once and is measured against the last major, which answers in shadow. A major is measured in shadow
against the live version first. All tests here are anytime-valid (`stats.sequential`): looking after every batch costs nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from control.state import Comparison, ModelState
from schemas.artifact import parse_version
from schemas.events import Action, Arm, Candidate, Command, Evidence, Rollout, RouteTable, Stage
from schemas.identity import name_id
from schemas.spec import ModelSpec
from stats.sequential import BettingTest, advance


class Decision(NamedTuple):
    """A new route table with the event that explains it."""

    route: RouteTable
    rollout: Rollout


class Change(NamedTuple):
    """What a decision changes, before it is numbered."""

    action: Action
    version: str
    artifact: str
    reason: str
    evidence: Evidence
    live: Arm | None
    stage: Stage
    challenger: Arm | None = None
    frozen: bool = False
    by: str = "controller"
    pass_until_ms: int = 0
    """Requests up to this timestamp may be rejected without limit; 0: as before."""


def empty_route(model: str) -> RouteTable:
    """The route of a model without a version."""
    return RouteTable(
        event_id=str(name_id("route", model, 0)), model=model, at_ms=0, revision=0, stage="empty", arms=[]
    )


def fresh_comparison(margin: float) -> Comparison:
    """A comparison without rows: is the contender's mean loss within `margin` of the reference's?"""
    return Comparison(better=BettingTest(bound=1 - margin), worse=BettingTest(bound=1 + margin))


def compare(comparison: Comparison, differences: NDArray[np.float64], margin: float) -> Comparison:
    """The comparison after `differences` = loss(contender) - loss(reference), shape (n,), in [-1, 1]."""
    if not differences.size:
        return comparison
    return Comparison(
        better=advance(comparison.better, margin - differences),
        worse=advance(comparison.worse, differences - margin),
        rows=comparison.rows + differences.size,
        difference=comparison.difference + float(differences.sum()),
    )


def on_candidate(
    spec: ModelSpec, route: RouteTable, candidate: Candidate, golden_error: str, now_ms: int
) -> Decision:
    """Introduce, promote, put into shadow or refuse a candidate; `golden_error` is "" if its golden inference passed."""
    problem = _problem(route, candidate, golden_error)
    arm = Arm(name="champion", role="live", version=candidate.version, artifact=candidate.artifact)
    evidence: Evidence = {
        "candidate": candidate.event_id,
        "retrain": candidate.retrain_id,
        "report": candidate.report,
    }
    if problem:
        change = _kept(route, "refuse", candidate.version, candidate.artifact, problem, evidence)
    elif not route.champion:
        change = Change(
            "introduce",
            arm.version,
            arm.artifact,
            "first version",
            evidence,
            arm,
            "steady",
            None,
            route.frozen,
        )
    elif candidate.kind == "update":
        reason = f"update of {candidate.base_version}, gates and golden inference passed"
        change = Change(
            "promote_update",
            arm.version,
            arm.artifact,
            reason,
            evidence,
            arm,
            route.stage,
            _challenger(route),
            route.frozen,
        )
    else:
        reason = f"gates and golden inference passed; in shadow until it has {spec.rollout.shadow_rows} labelled rows"
        challenger = Arm(name="challenger", role="shadow", version=arm.version, artifact=arm.artifact)
        change = Change(
            "start_shadow",
            arm.version,
            arm.artifact,
            reason,
            evidence,
            _live(route),
            "shadow",
            challenger,
            route.frozen,
        )
    return decide(spec, route, change, now_ms)


def on_chain(spec: ModelSpec, route: RouteTable, state: ModelState, now_ms: int) -> Decision | None:
    """Back to the last major, if the chain of updates since is worse than it beyond chance."""
    chain = state.chain
    if (
        chain is None
        or route.frozen
        or route.champion == route.major
        or not chain.worse.rejects(1 - spec.rollout.confidence)
    ):
        return None
    major = next((arm for arm in route.arms if arm.version == route.major), None)
    if major is None:
        return None
    arm = Arm(name="champion", role="live", version=major.version, artifact=major.artifact)
    reason = f"updates lose {chain.mean_difference:+.4f} against {route.major}, more than {spec.rollout.max_loss} beyond chance"
    change = Change(
        "revert", arm.version, arm.artifact, reason, _evidence(chain), arm, route.stage, _challenger(route)
    )
    return decide(spec, route, change, now_ms)


def on_challenge(spec: ModelSpec, route: RouteTable, state: ModelState, now_ms: int) -> Decision | None:
    """Promote or refuse the challenger in shadow, once the paired losses say so."""
    challenge, challenger = state.challenge, _challenger(route)
    if challenge is None or challenger is None or route.stage != "shadow" or route.frozen:
        return None
    alpha = 1 - spec.rollout.confidence
    evidence = _evidence(challenge)
    not_worse = challenge.better.rejects(alpha) and challenge.mean_difference <= 0
    if challenge.rows >= spec.rollout.shadow_rows and not_worse:
        if spec.rollout.approval == "manual":
            change = Change(
                "await_approval", challenger.version, challenger.artifact, "proven in shadow; a person has to approve",
                evidence, _live(route), "approval", challenger,
            )  # fmt: skip
        else:
            change = _promotion(
                challenger, f"not worse than {route.champion} in shadow, beyond chance", evidence
            )
        return decide(spec, route, change, now_ms)
    refusal = ""
    if challenge.worse.rejects(alpha):
        refusal = f"worse than {route.champion} in shadow beyond chance"
    elif challenge.rows >= spec.rollout.shadow_max_rows:
        refusal = f"not proven after {challenge.rows} labelled rows in shadow"
    if not refusal:
        return None
    change = Change(
        "refuse", challenger.version, challenger.artifact, refusal, evidence, _live(route), "steady"
    )
    return decide(spec, route, change, now_ms)


def on_command(
    spec: ModelSpec, route: RouteTable, command: Command, artifacts: list[str], now_ms: int
) -> Decision | None:
    """What a person ordered; None if there is nothing to change. `artifacts` are the model's, oldest first."""
    evidence: Evidence = {"command": command.event_id, "reason": command.reason}
    challenger = _challenger(route)
    if command.action in ("freeze", "unfreeze"):
        change = _kept(route, command.action, route.champion, "", command.reason, evidence)
        change = change._replace(frozen=command.action == "freeze")
    elif command.action == "pass":
        reason = command.reason or "what was sent so far may be rejected without limit"
        change = _kept(route, "pass", route.champion, "", reason, evidence)
        change = change._replace(pass_until_ms=command.at_ms)
    elif command.action == "approve" and challenger is not None:
        change = _promotion(challenger, command.reason or "approved", evidence)._replace(frozen=route.frozen)
    elif command.action == "reject" and challenger is not None:
        reason = command.reason or "rejected by a person"
        change = Change(
            "refuse", challenger.version, challenger.artifact, reason, evidence, _live(route), "steady"
        )
        change = change._replace(frozen=route.frozen)
    elif command.action == "rollback" and (artifact := _rollback_target(route, command, artifacts)):
        version = artifact.partition("-")[0]
        arm = Arm(name="champion", role="live", version=version, artifact=artifact)
        reason = command.reason or f"rolled back from {route.champion}"
        # Frozen, so that the automaton does not undo at once what a person just did.
        change = Change("rollback", version, artifact, reason, evidence, arm, "steady", None, frozen=True)
    else:
        return None
    return decide(spec, route, change._replace(by=command.by or "a person"), now_ms)


def decide(spec: ModelSpec, route: RouteTable, change: Change, now_ms: int) -> Decision:
    """Number the change: the next route table and the event that goes with it."""
    revision = route.revision + 1
    live, champion, major, previous = change.live, route.champion, route.major, route.previous
    if live is not None and live.version != route.champion:
        old = _live(route)
        previous = old.artifact if old is not None else ""
        champion = live.version
        if live.version.endswith(".0") or parse_version(live.version)[0] != parse_version(major or "1.0")[0]:
            major = f"{parse_version(live.version)[0]}.0"
    known = {arm.version: arm.artifact for arm in route.arms}
    known |= {name.partition("-")[0]: name for name in route.retained}
    known |= {arm.version: arm.artifact for arm in (live, change.challenger) if arm is not None}
    new = RouteTable(
        event_id=str(name_id("route", spec.name, revision)),
        model=spec.name,
        at_ms=now_ms,
        revision=revision,
        stage=change.stage,
        arms=_arms(live, change.challenger, major, spec.rollout.baseline, known),
        frozen=change.frozen,
        champion=champion,
        major=major,
        previous=previous,
        retained=_retained(previous, major, spec.rollout.baseline, known),
        rejections_pass_until_ms=max(route.rejections_pass_until_ms, change.pass_until_ms),
    )
    rollout = Rollout(
        event_id=str(name_id("rollout", spec.name, revision)),
        model=spec.name,
        at_ms=now_ms,
        action=change.action,
        version=change.version,
        artifact=change.artifact,
        revision=revision,
        stage=change.stage,
        reason=change.reason,
        by=change.by,
        evidence=change.evidence,
    )
    return Decision(new, rollout)


def _arms(
    live: Arm | None, challenger: Arm | None, major: str, baseline: str, known: dict[str, str]
) -> list[Arm]:
    """The live arm and its shadows: each version answers in one shadow arm only."""
    if live is None:
        return []
    arms = [live]
    shadows = [("baseline", baseline), ("major", major)]
    for name, version in shadows:
        if version in known and version not in {arm.version for arm in arms}:
            arms.append(Arm(name=name, role="shadow", version=version, artifact=known[version]))
    if challenger is not None and challenger.version not in {arm.version for arm in arms}:
        arms.append(challenger)
    return arms


def _retained(previous: str, major: str, baseline: str, known: dict[str, str]) -> list[str]:
    kept = {previous, known.get(major, ""), known.get(baseline, "")} - {""}
    return sorted(kept)


def _problem(route: RouteTable, candidate: Candidate, golden_error: str) -> str:
    """Why this candidate cannot go on, "" if it can."""
    if not candidate.passed or not candidate.artifact:
        return candidate.reason or "did not pass its gates"
    if golden_error:
        return golden_error
    if route.champion and candidate.kind == "update" and candidate.base_version != route.champion:
        return f"its base {candidate.base_version} is no longer the champion ({route.champion} is)"
    if route.champion and candidate.kind != "update" and route.stage != "steady":
        return f"another major is being measured (stage {route.stage})"
    if route.frozen and candidate.kind == "update":
        return "the model is frozen"
    return ""


def _kept(
    route: RouteTable, action: Action, version: str, artifact: str, reason: str, evidence: Evidence
) -> Change:
    """A decision that leaves the arms as they are."""
    return Change(
        action,
        version,
        artifact,
        reason,
        evidence,
        _live(route),
        route.stage,
        _challenger(route),
        route.frozen,
    )


def _promotion(challenger: Arm, reason: str, evidence: Evidence) -> Change:
    arm = Arm(name="champion", role="live", version=challenger.version, artifact=challenger.artifact)
    return Change("promote_major", arm.version, arm.artifact, reason, evidence, arm, "steady")


def _rollback_target(route: RouteTable, command: Command, artifacts: list[str]) -> str:
    """The artifact to go back to: of the version named, else the previous champion's; "" if there is none."""
    if not command.version:
        return route.previous
    named = {arm.artifact for arm in route.arms} | set(route.retained) | set(artifacts)
    return max((artifact for artifact in named if artifact.partition("-")[0] == command.version), default="")


def _live(route: RouteTable) -> Arm | None:
    return next((arm for arm in route.arms if arm.role == "live"), None)


def _challenger(route: RouteTable) -> Arm | None:
    return next((arm for arm in route.arms if arm.name == "challenger"), None)


def _evidence(comparison: Comparison) -> Evidence:
    return {
        "rows": comparison.rows,
        "mean_difference": comparison.mean_difference,
        "log_e_not_worse": comparison.better.log_e_max,
        "log_e_worse": comparison.worse.log_e_max,
    }
