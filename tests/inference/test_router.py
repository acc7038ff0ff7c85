"""Routing is sticky by key, shares come out as weighted, and shadows are chosen independently of the live arm."""

import subprocess
import sys

import numpy as np
import pytest

from inference.router import Route, ServedArm, route_rows, uniform
from inference.versions import Version
from schemas.events import Arm
from schemas.spec import decode_spec

SPEC = decode_spec(
    'name = "toy"\ntask = "regression"\nmodule = "m:T"\n[features]\nx = { type = "float" }\n[rollout]\nmetric = "squared_error"',
    "toy",
)
KEYS = [b"user-%d" % i for i in range(20_000)]


def served(name: str, weight: float, role: str = "live") -> ServedArm:
    artifact = f"1.0-{'0' * 12}"
    arm = Arm(name=name, role=role, version="1.0", artifact=artifact, weight=weight)  # type: ignore[arg-type]  # one of two words
    return ServedArm(arm, Version(artifact, "1.0", SPEC, {}, {}, np.zeros((0, 1), np.float32), 0.0))


def test_every_key_has_exactly_one_live_arm_and_shares_follow_the_weights() -> None:
    shares = route_rows(Route("toy", 1, (served("champion", 9), served("challenger", 1))), KEYS)
    assert sorted(np.concatenate([share.rows for share in shares]).tolist()) == list(range(len(KEYS)))
    assert [share.propensity for share in shares] == pytest.approx([0.9, 0.1])
    assert len(shares[1].rows) / len(KEYS) == pytest.approx(0.1, abs=0.01)


def test_a_key_keeps_its_arm_in_any_batch_and_in_any_process() -> None:
    script = "from inference.router import uniform; print(uniform([b'user-7', b''], 'toy').tolist())"
    elsewhere = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert elsewhere.strip() == str(uniform([b"user-7", b""], "toy").tolist())
    assert uniform(KEYS, "toy")[7] == uniform([b"user-7"], "toy")[0]


def test_a_growing_challenger_takes_keys_and_gives_none_back() -> None:
    def challenged(weight: float) -> set[int]:
        arms = (served("champion", 1 - weight), served("challenger", weight))
        return set(route_rows(Route("toy", 1, arms), KEYS)[1].rows.tolist())

    assert challenged(0.1) < challenged(0.3) < challenged(0.9)


def test_a_shadow_sees_its_share_independently_of_the_live_arm() -> None:
    route = Route(
        "toy", 1, (served("a", 1), served("b", 1)), (served("s", 0.5, "shadow"), served("all", 1, "shadow"))
    )
    a, _, half, everything = route_rows(route, KEYS)
    assert len(everything.rows) == len(KEYS)
    assert half.propensity == 0.5
    assert len(half.rows) / len(KEYS) == pytest.approx(0.5, abs=0.02)
    both = len(np.intersect1d(a.rows, half.rows)) / len(KEYS)
    assert both == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("live", [(), (served("champion", 0),)])
def test_without_a_live_arm_nobody_answers(live: tuple[ServedArm, ...]) -> None:
    assert route_rows(Route("toy", 1, live, (served("s", 1, "shadow"),)), KEYS) == []
