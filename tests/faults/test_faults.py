"""The harness on the real stack: a dozen faults of as many kinds, each night forty of any, and every event accounted for."""

import datetime
import json
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.faults.command import command

KINDS = (
    "kill", "kill_server", "restart", "terminate", "stop", "cut", "stall", "delay", "lose_answers", "disk_full", "scale_in", "scale_out",
)  # fmt: skip


def clean_run(*arguments: str) -> dict[str, Any]:
    """What the harness found, which is nothing that is broken."""
    result = CliRunner().invoke(command, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    assert found["poison_injected"] == found["poison_dead_lettered"] > 0
    assert found["outcomes"] > 0
    assert found["metrics_cells"] > 0
    assert found["problems"] == []
    return found


@pytest.mark.stack
@pytest.mark.timeout(480)
def test_nothing_is_lost_and_nothing_counted_twice_under_a_dozen_faults() -> None:
    only = [argument for kind in KINDS for argument in ("--only", kind)]
    found = clean_run(
        "--faults", "12", "--duration", "20", "--longest", "4", "--orphan-after", "20", "--rate", "1000", *only
    )  # fmt: skip
    assert found["faults"] == len(KINDS)
    assert found["by_kind"] == dict.fromkeys(sorted(KINDS), 1)
    assert found["events"] >= 20_000
    assert found["orders"] >= 3


@pytest.mark.stack
@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_nor_under_forty_that_nobody_has_chosen() -> None:
    seed = f"{datetime.datetime.now(datetime.UTC):%Y%m%d}"
    found = clean_run("--faults", "40", "--seed", seed, "--rate", "1500")
    assert found["faults"] == 40
    assert found["events"] >= 100_000
