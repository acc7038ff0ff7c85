"""How far a stage is, told by what everybody can see: the group's committed offsets, a topic's end, ClickHouse's count.

A stage is never asked itself, so ours and a peer are measured by the same clock. A group is asked by a client that has its name and
subscribes to nothing, and so is no member.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import psutil
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer, TopicPartition

from benchmarks.load import Backlog
from runtime.kafka import REQUEST_TIMEOUT_SEC, consumer
from runtime.settings import Settings
from schemas.errors import UserError

LOOK_EVERY_SEC: Final = 0.02
LATE_SHARE: Final = 0.2
"""Of a backlog, answered before the clock of what follows was started: the rate would be of less work than it says."""
WAIT_SEC: Final = 0.1
"""Where only the end is waited for, and no time is taken."""
SELF: Final = "benchmark"
TRAILING_MARKERS: Final = 2
"""A group that commits the offset after the last record stays one or two before the end: markers follow."""


class StageFailed(UserError):
    """A stage that is measured ended, or did nothing, or not all; the line says which."""


class Committed:
    """Records of a backlog that a group has committed. With transactions that is what read-committed readers see the answers of."""

    def __init__(self, settings: Settings, group: str, backlog: Backlog) -> None:
        # What is committed is told in either level. This one does not wait for a moment in which no transaction is open: of a stage that
        # commits one after another, that may be long after its first, or its last.
        self._client: Consumer = consumer(settings, group, **{"isolation.level": "read_uncommitted"})
        self._backlog = backlog

    def __call__(self) -> int:
        places = [TopicPartition(self._backlog.topic, p) for p in self._backlog.start]
        found = self._client.committed(places, timeout=REQUEST_TIMEOUT_SEC)
        return sum(max(0, place.offset - self._backlog.start[place.partition]) for place in found)

    def close(self) -> None:
        self._client.close()


class Lag:
    """Offsets of a topic that a group has not committed. Markers of transactions count as records."""

    def __init__(self, settings: Settings, group: str, topic: str) -> None:
        self._client: Consumer = consumer(settings, group)
        self._places = _places(self._client, topic)

    def by_partition(self) -> list[int]:
        """Of each."""
        found = []
        for place in self._client.committed(self._places, timeout=REQUEST_TIMEOUT_SEC):
            asked = TopicPartition(place.topic, place.partition)
            low, high = self._client.get_watermark_offsets(asked, timeout=REQUEST_TIMEOUT_SEC, cached=False)
            found.append(high - max(low, place.offset))
        return found

    def __call__(self) -> int:
        return sum(self.by_partition())

    def close(self) -> None:
        self._client.close()


class Produced:
    """Records that were added to a topic since this was made. Only for topics that nobody writes transactions to: markers count too."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._client: Consumer = consumer(settings, "bench-produced")
        self._places = _places(self._client, topic)
        self._before = 0
        self._before = self()

    def __call__(self) -> int:
        highs = (
            self._client.get_watermark_offsets(place, timeout=REQUEST_TIMEOUT_SEC, cached=False)[1]
            for place in self._places
        )
        return sum(highs) - self._before

    def close(self) -> None:
        self._client.close()


def _places(client: Consumer, topic: str) -> list[TopicPartition]:
    partitions = client.list_topics(topic, timeout=REQUEST_TIMEOUT_SEC).topics[topic].partitions
    return [TopicPartition(topic, partition) for partition in partitions]


def count(client: Client, sql: str, parameters: Mapping[str, str] | None = None) -> int:
    """The one number that a query answers."""
    return int(client.query(sql, dict(parameters or {})).result_rows[0][0])


class Visible:
    """Live observations of a model that ClickHouse shows, since this was made."""

    def __init__(self, client: Client, model: str) -> None:
        self._client, self._model = client, model
        self._before = 0
        self._before = self()

    def __call__(self) -> int:
        sql = "SELECT count() FROM internal.observations WHERE model = {model:String}"
        return count(self._client, sql, {"model": self._model}) - self._before


@dataclass(frozen=True)
class Run:
    """One stage over one backlog, between the moment its first output was seen and the last."""

    rows: int
    sec: float
    cpu_sec: Mapping[str, float] = field(default_factory=dict)
    """CPU of each process in that time."""
    rss_bytes: Mapping[str, int] = field(default_factory=dict)
    """The most that each process held."""
    others_cores: float = 0.0
    """Cores that were busy with none of these processes: on a machine that is not ours alone, all figures suffer."""

    @property
    def rows_per_sec(self) -> float:
        return self.rows / self.sec

    def cpu_us_per_row(self, process: str) -> float:
        return self.cpu_sec[process] / self.rows * 1e6


def watch(
    progress: Callable[[], int], records: int, processes: Mapping[str, int], *, rows_per_record: int = 1,
    limit_sec: float = 120.0, start_limit_sec: float = 60.0, begun: Callable[[], int] | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Run:  # fmt: skip
    """Follow `progress` until it shows `records`, or for `limit_sec` after the first; `processes` are pids by name.

    `begun` starts the clock where it is not `progress` that does: with the first answer, when rows in ClickHouse are counted. `alive`
    raises if a process has ended.

    Raises:
        StageFailed: nothing came within `start_limit_sec`, or no more than the first; or much was answered when the clock was started.
    """
    first = begun or progress
    deadline = time.monotonic() + start_limit_sec
    while not (answered := first()):
        alive()
        if time.monotonic() > deadline:
            raise StageFailed(f"nothing was processed within {start_limit_sec:.0f} s")
        time.sleep(LOOK_EVERY_SEC)
    if begun is not None and answered > LATE_SHARE * records:
        raise StageFailed(
            f"the clock was started late, when {answered:,} of {records:,} records were answered"
        )
    handles = {name: psutil.Process(pid) for name, pid in processes.items()}
    handles[SELF] = psutil.Process()
    started, before, cpu_before, busy_before = time.monotonic(), progress(), _cpu_sec(handles), _busy_sec()
    rss: dict[str, int] = {}
    done, ended = before, started
    while done < records and ended - started < limit_sec:
        alive()
        time.sleep(LOOK_EVERY_SEC)
        for name, handle in handles.items():
            rss[name] = max(rss.get(name, 0), handle.memory_info().rss)
        done = progress()
        ended = time.monotonic()
    if done > records:
        raise StageFailed(f"{records} records were there, and {done} were processed")
    if before >= records:
        raise StageFailed(f"all {records} records were processed before the clock was started: take more")
    if done == before:
        raise StageFailed(f"only {done} of {records} records were processed within {limit_sec:.0f} s")
    after, busy_after = _cpu_sec(handles), _busy_sec()
    spent = {name: after[name] - cpu_before[name] for name in handles}
    others_cores = max(0.0, busy_after - busy_before - sum(spent.values())) / (ended - started)
    spent.pop(SELF)
    return Run((done - before) * rows_per_record, ended - started, spent, rss, others_cores)


def wait_for(
    progress: Callable[[], int], wanted: int, what: str, *, timeout_sec: float = 120.0, alive: Callable[[], None] = lambda: None
) -> None:  # fmt: skip
    """Wait until `progress` shows `wanted`; `alive` raises if a process has ended.

    Raises:
        StageFailed: it does not within `timeout_sec`; the line begins with `what`.
    """
    deadline = time.monotonic() + timeout_sec
    while (found := progress()) < wanted:
        alive()
        if time.monotonic() > deadline:
            raise StageFailed(f"{what}: {found:,} of {wanted:,} after {timeout_sec:.0f} s")
        time.sleep(WAIT_SEC)


def wait_caught_up(settings: Settings, group: str, topic: str, timeout_sec: float = 120.0) -> None:
    """Wait until a group has committed all of a topic, but for the markers of transactions that end it.

    Raises:
        StageFailed: it has not.
    """
    with contextlib.closing(Lag(settings, group, topic)) as lag:
        deadline = time.monotonic() + timeout_sec
        while (behind := max(lag.by_partition())) > TRAILING_MARKERS:
            if time.monotonic() > deadline:
                raise StageFailed(
                    f"{group} is {behind:,} offsets behind on {topic} after {timeout_sec:.0f} s"
                )
            time.sleep(WAIT_SEC)


def cpu_sec(pid: int) -> float:
    """CPU that a process and what it has started has used so far."""
    process = psutil.Process(pid)
    return sum(sum(member.cpu_times()[:2]) for member in (process, *process.children(recursive=True)))


def _busy_sec() -> float:
    """CPU time of the whole machine, without what it idled or waited for a disk."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _cpu_sec(handles: Mapping[str, psutil.Process]) -> dict[str, float]:
    """User and system time of each process and what it has started."""
    # What the benchmark itself has started is counted by name already.
    return {
        name: sum(handle.cpu_times()[:2]) if name == SELF else cpu_sec(handle.pid)
        for name, handle in handles.items()
    }
