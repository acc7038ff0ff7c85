"""Schedules are data: one seed gives one, any seed gives one that can be carried out."""

import pytest

from benchmarks.faults.actions import ACTIONS, affected
from benchmarks.faults.monitor import READS
from benchmarks.faults.schedule import KINDS, Fault, choose, draw
from schemas.errors import UserError


@pytest.mark.parametrize("seed", range(20))
def test_any_seed_gives_a_schedule_with_every_kind_in_it(seed: int) -> None:
    faults = draw(seed, 300, 900.0, KINDS)
    assert len(faults) == 300
    assert {fault.kind for fault in faults} == {kind.name for kind in KINDS}
    assert [fault.begin_sec for fault in faults] == sorted(fault.begin_sec for fault in faults)
    assert faults == draw(seed, 300, 900.0, KINDS)
    assert faults != draw(seed + 1, 300, 900.0, KINDS)


def test_every_fault_has_an_action_and_stages_whose_recovery_is_known() -> None:
    for kind in KINDS:
        assert kind.name in ACTIONS
        for target in kind.targets:
            assert set(affected(Fault(0, kind.name, target, 0.0, 0.0, "ordinary"))) <= set(READS)


def test_only_and_longest_narrow_the_kinds() -> None:
    (kind,) = choose(["stop:kafka"], 1.0)
    assert (kind.targets, kind.longest_sec) == (("kafka",), 1.0)
    assert "stop_past_session" not in {kind.name for kind in choose([], 5.0)}


@pytest.mark.parametrize("only", ["kil", "kill:kafkaa", "stop_past_insert"])
def test_a_mistaken_choice_is_one_clear_line(only: str) -> None:
    with pytest.raises(UserError, match=r"^--(only|longest)"):
        choose([only], 5.0)
