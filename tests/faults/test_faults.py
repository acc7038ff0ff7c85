"""The harness on the real stack: a dozen faults of as many kinds, and every event accounted for."""

import json

import pytest
from click.testing import CliRunner

from benchmarks.faults.command import command

KINDS = (
    "kill", "kill_server", "restart", "terminate", "stop", "cut", "stall", "delay", "lose_answers", "disk_full", "scale_in", "scale_out",
)  # fmt: skip


@pytest.mark.stack
@pytest.mark.timeout(480)
def test_nothing_is_lost_and_nothing_counted_twice_under_a_dozen_faults() -> None:
    only = [argument for kind in KINDS for argument in ("--only", kind)]
    result = CliRunner().invoke(
        command,
        ["--faults", "12", "--duration", "20", "--longest", "4", "--orphan-after", "20", "--rate", "1000", "--json", *only],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert found["faults"] == len(KINDS)
    assert found["by_kind"] == dict.fromkeys(sorted(KINDS), 1)
    assert found["events"] >= 20_000
    assert found["poison_injected"] == found["poison_dead_lettered"] > 0
    assert found["outcomes"] > 0
    assert found["orders"] >= 3
    assert found["metrics_cells"] > 0
    assert found["problems"] == []
