"""Workers that join, are stopped past their session, die and leave while rows come: every row is counted once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from compose.embedded.stack import Stack
from runtime.service import CRASHED, FENCED
from schemas.topics import OBSERVATIONS
from tests.services import Service, service
from tests.streams.worker.batches import EPOCH_MS, features, observations
from tests.streams.worker.worker import Bench, newest, worker_process
from tests.waiting import until

ROWS = 100
WITHIN_SEC = 90.0


class Storm:
    """Rows over all partitions, how many of them were counted, and the workers that count them."""

    def __init__(self, bench: Bench, running: contextlib.ExitStack, folder: Path) -> None:
        self.rows = 0
        self._bench = bench
        self._running = running
        self._folder = folder
        self._members: list[Service] = []

    def join(self) -> Service:
        """One more worker."""
        slot = len(self._members)
        settings = msgspec.structs.replace(self._bench.settings, slot=slot)
        member = self._running.enter_context(worker_process(settings, self._folder / f"{slot}.log"))
        self._members.append(member)
        return member

    def leave(self, member: Service) -> None:
        """In order, and for good. What it has not saved may be another's by then: it must not save that."""
        self._members.remove(member)
        assert member.stop() in (0, FENCED)

    def write(self, batches: int) -> None:
        for _ in range(batches):
            when_ms = np.arange(ROWS, dtype=np.int64) + EPOCH_MS + self.rows
            rows = features(self._bench.rng, ROWS)
            batch = observations(self._bench.spec, rows, first_offset=self.rows, at_ms=when_ms)
            partition = self.rows // ROWS % OBSERVATIONS.partitions
            self._bench.source.commit(OBSERVATIONS.name, [batch], partition)
            self.rows += ROWS

    def write_until(self, condition: Callable[[], object], what: str) -> None:
        """Go on writing until `condition` holds."""

        def holds() -> object:
            self.write(1)
            self._tend()
            return condition()

        until(holds, what, WITHIN_SEC)

    def wait_counted(self) -> None:
        """Until all rows are counted; fails if one is counted twice."""

        def counted() -> bool:
            self._tend()
            found = sum(w.rows for w in newest(self._bench.metrics.read()).values() if w.segment == "")
            assert found <= self.rows
            return found == self.rows

        until(counted, f"all {self.rows} rows are counted", WITHIN_SEC)

    def _tend(self) -> None:
        """As a supervisor would: one that has ended, having been fenced or handed an event too many, begins anew."""
        for member in self._members:
            code = member.exit_code
            if code is not None:
                said = member.log.read_text()
                assert code == FENCED or "starting anew" in said, said[-4000:]
                member.start()


@pytest.mark.timeout(300)
def test_a_worker_stopped_past_its_session_and_a_storm_of_rebalances_count_each_row_once(
    infrastructure: Stack, tmp_path: Path
) -> None:
    bench = Bench(infrastructure.settings, tmp_path, "m_members")
    with contextlib.closing(bench), contextlib.ExitStack() as running:
        storm = Storm(bench, running, tmp_path)
        first, second = storm.join(), storm.join()
        storm.write_until(lambda: has_work(first) and has_work(second), "both have partitions")
        first.process.send_signal(signal.SIGSTOP)
        # It was stopped at its work; what it had not saved is the other's, once its session is over.
        storm.write(2 * OBSERVATIONS.partitions)
        storm.wait_counted()
        third = storm.join()
        storm.write_until(lambda: has_work(third), "the third has partitions")
        first.process.send_signal(signal.SIGCONT)
        storm.write(OBSERVATIONS.partitions)
        second.restart()
        storm.write(OBSERVATIONS.partitions)
        storm.leave(third)
        storm.write_until(lambda: has_work(second), "the second has partitions again")
        storm.write(OBSERVATIONS.partitions)
        storm.wait_counted()


def test_a_leader_that_does_not_know_a_topic_ends_and_assigns_nothing(
    infrastructure: Stack, tmp_path: Path
) -> None:
    """It would give nothing to anybody, and all would wait until somebody asks the broker again: five minutes, by default."""
    bench = Bench(infrastructure.settings, tmp_path, "m_unknowing")
    with (
        contextlib.closing(bench),
        service(bench.settings, bench.log, "tests.streams.worker.unknowing") as unknowing,
    ):
        assert unknowing.process.wait(WITHIN_SEC) == CRASHED
        assert f"does not tell the partitions of {OBSERVATIONS.name}" in bench.log.read_text()
        with worker_process(bench.settings, tmp_path / "knowing.log") as knowing:
            knowing.wait_ready()
            until(lambda: len(knowing.stages()) == 3 * OBSERVATIONS.partitions, "all partitions")


def has_work(member: Service) -> bool:
    """Whether it has partitions that it reads; False while it starts."""
    return member.exit_code is None and bool(member.stages())
