"""Schedules are data: one seed gives one, any seed gives one that can be carried out."""

import threading
import time
from contextlib import nullcontext
from unittest.mock import Mock

import numpy as np
import pytest

from benchmarks.faults.actions import ACTIONS, UNRECOVERED_AT_ONCE, Executor, affected
from benchmarks.faults.monitor import READS
from benchmarks.faults.schedule import KINDS, Fault, choose, draw, process_of
from schemas.errors import UserError


@pytest.mark.parametrize("seed", range(20))
def test_any_seed_gives_a_schedule_with_every_kind_in_it(seed: int) -> None:
    faults = draw(seed, 300, 900.0, KINDS)
    assert len(faults) == 300
    assert {fault.kind for fault in faults} == {kind.name for kind in KINDS}
    assert [fault.begin_sec for fault in faults] == sorted(fault.begin_sec for fault in faults)
    assert faults == draw(seed, 300, 900.0, KINDS)
    assert faults != draw(seed + 1, 300, 900.0, KINDS)


def test_what_is_broken_is_not_hit_again_while_there_is_anything_else_to_hit() -> None:
    free_at_sec: dict[str, float] = {}
    for fault in draw(7, 300, 900.0, [kind for kind in KINDS if len(kind.targets) > 4]):
        assert free_at_sec.get(process_of(fault.target), 0.0) <= fault.begin_sec, fault
        free_at_sec[process_of(fault.target)] = fault.begin_sec + fault.duration_sec


def test_a_fault_that_waits_delays_what_follows_and_nothing_comes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.faults.actions.ACTIONS", {"stop": lambda *_: nullcontext()})
    target = "kafka"
    planned = [
        Fault(0, "stop", target, 0.0, 0.3, "ordinary"),
        Fault(1, "stop", target, 0.1, 0.0, "ordinary"),
        *(Fault(2 + n, "stop", f"sink-{n}", 0.2 + 0.1 * n, 0.0, "ordinary") for n in range(3)),
    ]
    executor = Executor(Mock(), Mock(), Mock(unrecovered=[]), time.monotonic(), threading.Event())
    executor.run(planned, lambda _: None)
    began_sec = [event.began_sec for event in executor.events]
    assert began_sec[1] >= 0.3
    gaps_sec = np.diff(began_sec[1:])
    assert (gaps_sec > 0.09).all(), began_sec


def test_while_many_are_not_recovered_from_no_other_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.faults.actions.ACTIONS", {"stop": lambda *_: nullcontext()})
    monitor = Mock(unrecovered=[0] * UNRECOVERED_AT_ONCE)
    executor = Executor(Mock(), Mock(), monitor, time.monotonic(), threading.Event())
    running = threading.Thread(
        target=executor.run, args=([Fault(0, "stop", "kafka", 0.0, 0.0, "ordinary")], lambda _: None)
    )
    running.start()
    running.join(0.5)
    assert running.is_alive()
    assert not executor.events
    monitor.unrecovered = []
    running.join(5)
    assert len(executor.events) == 1


def test_ended_early_it_begins_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.faults.actions.ACTIONS", {"stop": lambda *_: nullcontext()})
    enough = threading.Event()
    executor = Executor(Mock(), Mock(), Mock(unrecovered=[]), time.monotonic(), enough)
    planned = [Fault(n, "stop", f"sink-{n}", 3600.0 * n, 0.0, "ordinary") for n in range(3)]
    executor.run(planned, lambda _: enough.set())
    assert [event.fault.number for event in executor.events] == [0]
    assert executor.events[0].ended_sec is not None, "what had begun is over"


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
