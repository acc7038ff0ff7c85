"""When a process that was ended counts as back, and when a stage has caught up."""

import contextlib
import uuid

import pytest
from confluent_kafka import TopicPartition

from benchmarks.faults import monitor
from benchmarks.faults.monitor import Offsets, is_back, wait_caught_up
from compose.embedded.stack import Stack
from runtime.kafka import admin, consumer, create_topics
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer
from schemas.topics import OBSERVATIONS
from tests.waiting import until


@pytest.mark.parametrize(
    ("state", "pid", "ended_pid", "back"),
    [
        ("ready", 7, 7, False),  # it has its SIGTERM, and still answers
        ("restarting", None, 7, False),
        ("starting", 8, 7, False),
        ("ready", 8, 7, True),
        ("ready", 7, None, True),  # nothing ended it: it was stopped, or a link broke
        ("not ready", 7, None, False),
    ],
)
def test_a_process_is_back_when_another_is_ready(state: str, pid: int | None, ended_pid: int | None, back: bool) -> None:  # fmt: skip
    assert is_back({"state": state, "pid": pid}, ended_pid) is back


class Stage:
    """A stage's offsets, one more a look until `stands_at`; of 5 records."""

    def __init__(self, stands_at: int) -> None:
        self._looks = iter(range(1000))
        self._stands_at = stands_at

    def committed(self, stage: str) -> dict[tuple[str, int], int]:
        return {(stage, 0): min(next(self._looks), self._stands_at)}

    def ends(self, stage: str) -> dict[tuple[str, int], int]:
        return {(stage, 0): 5}

    def close(self) -> None:
        pass


def test_a_stage_that_moves_is_waited_for_and_one_that_stands_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    still_sec = 5 * monitor.TICK_SEC
    monkeypatch.setattr(monitor, "Offsets", lambda settings: Stage(stands_at=5))
    wait_caught_up(Settings(), ("sink",), still_sec)
    monkeypatch.setattr(monitor, "Offsets", lambda settings: Stage(stands_at=3))
    with pytest.raises(TimeoutError, match=r"records left of sink, which has not moved for 0 s: sink:0 2"):
        wait_caught_up(Settings(), ("sink",), still_sec)


def test_a_stage_has_caught_up_where_only_a_transactions_marker_is_left(
    infrastructure: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, group = infrastructure.settings, f"stage-{uuid.uuid4()}"
    create_topics(admin(settings), [(group, OBSERVATIONS, 1)])
    monkeypatch.setitem(monitor.READS, group, {group: 1})
    with contextlib.ExitStack() as closing:
        offsets, member = Offsets(settings), consumer(settings, group)
        writer = TransactionalProducer(settings, group)
        for each in (offsets, member, writer):
            closing.callback(each.close)

        def write(end: int) -> None:
            writer.begin()
            writer.produce(group, b"a record")
            writer.commit()
            # The marker is written after the commit was answered.
            until(lambda: offsets.ends(group) == {(group, 0): end}, f"{group} ends at {end}")

        def commit(offset: int) -> None:
            member.commit(offsets=[TopicPartition(group, 0, offset)], asynchronous=False)

        def has_reached() -> bool:
            """In the second of two looks: in the first nobody knows that the stage stands."""
            ends = offsets.ends(group)
            return [offsets.has_reached(group, ends) for _ in range(2)][-1]

        write(2)
        assert not has_reached()
        commit(1)
        assert has_reached()
        write(4)
        assert not has_reached()
        commit(3)
        assert has_reached()
