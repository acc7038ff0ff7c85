"""What a recovery counts as: that of the gravest fault that its stages had to recover from at the time."""

import pytest

from benchmarks.faults import monitor, report
from benchmarks.faults.account import Account
from benchmarks.faults.actions import Event
from benchmarks.faults.report import counted_as
from benchmarks.faults.schedule import Fault, Recovery


def event(
    number: int, target: str, recovery: Recovery, began: float, ended: float, recovered: float
) -> Event:
    fault = Fault(number, "stop", target, began, ended - began, recovery)
    return Event(fault, began, ended, recovered)


BROKER = event(0, "kafka", "restart", 10.0, 10.0, 30.0)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (event(1, "sink-0", "ordinary", 12.0, 14.0, 30.0), "restart"),
        (event(1, "sink-0", "ordinary", 5.0, 6.0, 11.0), "restart"),
        (event(1, "sink-0", "ordinary", 5.0, 6.0, 9.0), "ordinary"),
        (event(1, "sink-0", "ordinary", 31.0, 32.0, 33.0), "ordinary"),
        (event(1, "control", "ordinary", 12.0, 14.0, 30.0), "ordinary"),
        (event(1, "sink-0", "long", 12.0, 14.0, 30.0), "long"),
        # It should have recovered when the broker went away: that it had not is its own.
        (event(1, "sink-0", "ordinary", -8.0, -6.0, 30.0), "ordinary"),
        (event(1, "sink-0", "ordinary", -6.0, -4.0, 30.0), "restart"),
    ],
)
def test_a_recovery_beside_a_graver_one_counts_as_that(other: Event, expected: Recovery) -> None:
    assert counted_as(other, [BROKER, other]) == expected
    assert counted_as(BROKER, [BROKER, other]) in ("restart", "long")


def test_an_event_alone_counts_as_itself() -> None:
    alone = event(3, "labels-0", "ordinary", 1.0, 2.0, 2.5)
    assert counted_as(alone, [alone]) == "ordinary"


def test_recoveries_of_what_there_is_one_of_stand_apart() -> None:
    events = [event(0, "control", "ordinary", 1.0, 2.0, 9.0), event(1, "sink-0", "ordinary", 1.0, 2.0, 3.0)]
    recoveries = {0: monitor.Recovery(9.0, 7.0, "control"), 1: monitor.Recovery(3.0, 1.0, "sink")}
    found = report.result(
        Account(), events, recoveries, {}, seed=1, audit={"ok": True}, load_sec=1.0, cells=0, bug="", problems=[],
        restarts={}, planned=3,
    )  # fmt: skip
    assert any(line.startswith("2 of 3 faults over") for line in report.lines(found))
    assert found["recovery_max_s"] == 1.0
    assert found["slowest_p99_s"] == {"control": 7.0, "sink": 1.0}
    assert found["ok"]


def test_restarts_that_no_fault_made_and_faults_that_met_nothing_are_told() -> None:
    def of(kind: str, target: str, failure: str = "", met: int | None = None) -> Event:
        return Event(Fault(0, kind, target, 0.0, 0.0, "ordinary"), 0.0, 0.0, 0.0, failure, met)

    events = [
        of("kill", "stub"), of("terminate", "triton"), of("kill", "sink-0"), of("stop", "sink-1"), of("kill", "sink-1", "no process"),
        of("cut", "sink-kafka", met=0), of("delay", "sink-kafka", met=3),
    ]  # fmt: skip
    restarts = {"triton": 2, "sink-0": 3, "sink-1": 1, "kafka": 0}
    assert report.unplanned(restarts, events) == {"sink-0": 2, "sink-1": 1}
    found = report.result(
        Account(), events, {}, {}, seed=1, audit={"ok": True}, load_sec=1.0, cells=0, bug="", problems=[], restarts=restarts,
        planned=len(events),
    )  # fmt: skip
    assert (found["idle_faults"], found["links_met"]) == (1, {"sink-kafka": 3})
