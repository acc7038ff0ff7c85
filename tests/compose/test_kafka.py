"""What the broker's probe sees, and what it outlives."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from compose.embedded import kafka
from compose.embedded.kafka import ASK_EVERY_SEC, FORSAKEN_SEC, OFFSETS_PARTITIONS, KafkaProbe
from compose.embedded.process import Broken, NotReady
from compose.embedded.stack import Stack


class Deaf:
    """A consumer that never fetches."""

    closed = False

    def assign(self, _places: object) -> None:
        pass

    def poll(self, _timeout_sec: float) -> None:
        return None

    def close(self) -> None:
        self.closed = True


def test_a_probe_whose_consumer_reads_nothing_takes_another_one(infrastructure: Stack) -> None:
    probe, deaf = KafkaProbe(infrastructure.settings.kafka_bootstrap), Deaf()
    probe.__dict__["_consumer"] = deaf
    with pytest.raises(NotReady, match="could not be read back"):
        probe()
    assert deaf.closed
    assert probe()["topics"] > 0


class Clock:
    now_sec = 100.0

    def __call__(self) -> float:
        return self.now_sec


class Groups:
    """In place of a consumer: the groups' coordinators of a broker that is well otherwise."""

    asked: list[str]
    gone: set[str]
    says = KafkaError.NOT_COORDINATOR

    def __init__(self, options: dict[str, Any]) -> None:
        self._group = options["group.id"]

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self.asked.append(self._group)
        if self._group in self.gone:
            raise KafkaException(KafkaError(self.says))
        return places

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    Groups.asked, Groups.gone = [], set()
    monkeypatch.setattr(kafka, "Consumer", Groups)
    monkeypatch.setattr(KafkaProbe, "_round_trip", lambda _: {"topics": 1})
    return Clock()


def test_every_coordinator_is_asked_in_turn(clock: Clock) -> None:
    probe = KafkaProbe("nowhere", clock)
    for _ in range(OFFSETS_PARTITIONS):
        assert probe() == {"topics": 1}
        clock.now_sec += ASK_EVERY_SEC
    assert len(set(Groups.asked)) == OFFSETS_PARTITIONS
    probe()
    probe()
    assert len(Groups.asked) == OFFSETS_PARTITIONS + 1, "not at every probe"


def test_a_coordinator_that_stays_away_costs_the_broker_its_life_and_one_that_comes_back_does_not(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = KafkaProbe("nowhere", clock)

    def probed(sec: float) -> None:
        for _ in range(int(sec / ASK_EVERY_SEC)):
            clock.now_sec += ASK_EVERY_SEC
            probe()

    probed(ASK_EVERY_SEC)
    Groups.gone = {kafka._group_in(1)}
    probed(FORSAKEN_SEC)
    Groups.gone = set()
    probed(FORSAKEN_SEC)
    Groups.gone = {kafka._group_in(6)}
    with pytest.raises(Broken, match="__consumer_offsets-6"):
        probed((OFFSETS_PARTITIONS * ASK_EVERY_SEC) + FORSAKEN_SEC + ASK_EVERY_SEC)
    # The next life has as long.
    probed(FORSAKEN_SEC)
    with pytest.raises(Broken):
        probed(2 * ASK_EVERY_SEC)


@pytest.mark.parametrize("says", [KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError._TIMED_OUT])
def test_a_coordinator_that_is_being_loaded_or_slow_is_waited_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, says: int
) -> None:
    monkeypatch.setattr(Groups, "says", says)
    Groups.gone = {kafka._group_in(0)}
    probe = KafkaProbe("nowhere", clock)
    for _ in range(int(3 * FORSAKEN_SEC / ASK_EVERY_SEC)):
        assert probe() == {"topics": 1}
        clock.now_sec += ASK_EVERY_SEC


def test_a_broker_that_does_not_answer_at_all_is_waited_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = KafkaProbe("nowhere", clock)
    Groups.gone = {kafka._group_in(0)}
    probe()

    def away(_: KafkaProbe) -> dict[str, Any]:
        raise NotReady("nobody there")

    with monkeypatch.context() as broken:
        broken.setattr(KafkaProbe, "_round_trip", away)
        clock.now_sec += 2 * FORSAKEN_SEC
        with pytest.raises(NotReady, match="nobody"):
            probe()
    assert probe() == {"topics": 1}
