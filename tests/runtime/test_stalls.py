"""Who stands still is told from who has nothing to do."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping

import pytest

from compose.embedded.ports import HOST, free_ports
from runtime.kafka import admin, create_topics
from runtime.positions import Place
from runtime.service import CRASHED, Stage
from runtime.settings import Settings
from runtime.stalls import (
    LONGEST_GAP_SEC,
    OUTSIDE_AFTER_SEC,
    STALLED_AFTER_SEC,
    Positions,
    StallDetector,
    Stalled,
    StallGuard,
)
from runtime.transactions import TransactionalProducer
from schemas.topics import OBSERVATIONS
from tests.waiting import until


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def place(settings: Settings) -> Place:
    name = f"watched-{uuid.uuid4()}"
    create_topics(admin(settings), [(name, OBSERVATIONS, 1)])
    return name, 0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def detector(settings: Settings, clock: Clock) -> Iterator[StallDetector]:
    made = StallDetector(settings, f"watched-{uuid.uuid4()}", clock)
    yield made
    made.close()


@pytest.fixture
def writer(settings: Settings) -> Iterator[TransactionalProducer]:
    made = TransactionalProducer(settings, f"test-{uuid.uuid4()}")
    yield made
    made.close()


def write(writer: TransactionalProducer, place: Place, *, aborted: bool = False) -> None:
    """One record in a transaction of its own: with its marker two offsets."""
    writer.begin()
    writer.produce(place[0], b"x", partition=place[1])
    assert writer._producer.flush(10) == 0  # what is aborted before it was sent never comes
    (writer.abort if aborted else writer.commit)()


def look_for(
    detector: StallDetector,
    clock: Clock,
    positions: Mapping[Place, int | None],
    sec: float,
    *,
    joined: bool = True,
) -> None:
    """Look so often that all of the time counts."""
    while sec > 0:
        step = min(sec, LONGEST_GAP_SEC)
        clock.now += step
        sec -= step
        detector.look(positions, joined=joined)


def test_trailing_markers_and_aborted_records_are_nothing_to_do(
    writer: TransactionalProducer, place: Place, detector: StallDetector, clock: Clock
) -> None:
    write(writer, place)
    write(writer, place, aborted=True)
    for _ in range(5):
        look_for(detector, clock, {place: 1}, STALLED_AFTER_SEC)
        (stage,) = detector.look({place: 1}).values()
        assert (stage.lag_records, stage.oldest_age_sec) == (0, 0)


def test_a_record_that_is_not_read_for_long_is_a_stall(
    writer: TransactionalProducer, place: Place, detector: StallDetector, clock: Clock
) -> None:
    write(writer, place)
    detector.look({place: 1})
    look_for(detector, clock, {place: 1}, 10 * STALLED_AFTER_SEC)
    write(writer, place)
    # However long it was idle before: the record has just come. (The commit's marker is written behind its answer.)
    until(lambda: detector.look({place: 1})[place].lag_records, "the record is there")
    look_for(detector, clock, {place: 1}, STALLED_AFTER_SEC - 1)
    assert detector.look({place: 1})[place].oldest_age_sec == STALLED_AFTER_SEC - 1
    with pytest.raises(Stalled, match=place[0]):
        look_for(detector, clock, {place: 1}, 2)


def test_time_in_which_nobody_looked_is_nobodys_fault(
    writer: TransactionalProducer, place: Place, detector: StallDetector, clock: Clock
) -> None:
    write(writer, place)
    detector.look({place: 0})
    clock.now += 100 * STALLED_AFTER_SEC  # the process was stopped
    assert detector.look({place: 0})[place].oldest_age_sec == LONGEST_GAP_SEC


def test_who_moves_is_not_stalled(
    writer: TransactionalProducer, place: Place, detector: StallDetector, clock: Clock
) -> None:
    for _ in range(4):
        write(writer, place)
    for position in (0, 2, 4, 6):
        look_for(detector, clock, {place: position}, STALLED_AFTER_SEC)
        assert detector.look({place: position})[place].lag_records > 0


def test_what_is_left_out_for_once_begins_anew(
    writer: TransactionalProducer, place: Place, detector: StallDetector, clock: Clock
) -> None:
    write(writer, place)
    for _ in range(3):
        look_for(detector, clock, {place: 0}, STALLED_AFTER_SEC)
        assert detector.look({}) == {}


def test_a_partition_that_was_never_read_begins_at_its_start(
    writer: TransactionalProducer, place: Place, detector: StallDetector, clock: Clock
) -> None:
    write(writer, place)
    until(lambda: detector.look({place: None})[place].lag_records == 2, "record and marker are there")
    with pytest.raises(Stalled):
        look_for(detector, clock, {place: None}, STALLED_AFTER_SEC + 1)


def test_without_a_broker_nobody_is_blamed(clock: Clock) -> None:
    detector = StallDetector(Settings(kafka_bootstrap="127.0.0.1:1"), "nobody", clock)
    assert detector.look({("observations", 0): 5}) == {}
    detector.close()


def test_who_is_in_no_group_though_it_answers_is_stalled(detector: StallDetector, clock: Clock) -> None:
    look_for(detector, clock, {}, OUTSIDE_AFTER_SEC, joined=False)
    detector.look({}, joined=True)
    look_for(detector, clock, {}, OUTSIDE_AFTER_SEC, joined=False)
    with pytest.raises(Stalled, match="in no group"):
        look_for(detector, clock, {}, 1, joined=False)


def test_who_looks_for_a_group_while_nobody_answers_is_not_blamed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.stalls._PROBE_SEC", 0.05)
    (nobody,) = free_ports(1)
    detector = StallDetector(Settings(kafka_bootstrap=f"{HOST}:{nobody}"), "nobody", clock)
    for _ in range(2):
        look_for(detector, clock, {}, OUTSIDE_AFTER_SEC, joined=False)
    detector.close()


class Told(StallDetector):
    """Sees a stall in whatever it is told of."""

    def __init__(self) -> None:
        self.looks: list[Positions] = []

    def look(self, positions: Positions, *, joined: bool = True) -> dict[Place, Stage]:
        self.looks.append(positions)
        if positions:
            raise Stalled("it stands")
        return {}

    def close(self) -> None:
        pass


def test_a_loop_that_says_nothing_is_not_judged_and_one_that_stands_is_ended() -> None:
    detector, ended = Told(), threading.Event()
    guard = StallGuard(detector, 0.01, lambda code: ended.set() if code == CRASHED else None)
    guard.start()
    until(lambda: len(detector.looks) > 2, "it looks")
    assert not any(detector.looks)

    def raised() -> bool:
        try:
            guard.reading({("observations", 0): 5}, joined=True)
        except Stalled:
            return True
        return False

    until(raised, "the loop is told")
    assert not ended.is_set(), "a process has time to end by itself"
    guard.close()
    assert not guard.is_alive()
    assert not ended.is_set()


def test_a_process_that_does_not_end_by_itself_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.stalls.END_SEC", 0.01)
    codes: list[int] = []
    guard = StallGuard(Told(), 0.01, codes.append)
    guard.reading({("observations", 0): 5}, joined=True)
    guard.start()
    until(lambda: codes == [CRASHED], "its end")
    guard.close()
