"""Our gateways over a backlog, alone, and end to end into ClickHouse.

Nobody can read the backlog until all are there and every gateway has its partitions, so no start-up and no rebalance is in a figure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from benchmarks.load import Backlog, Bodies, HeldBacklog, request_topic
from benchmarks.meter import Committed, Run, Visible, cpu_sec, wait_caught_up, watch
from benchmarks.report import progress
from benchmarks.stages import Bench, Service, running, wait_shared
from inference.source import GROUP as GATEWAY_GROUP
from runtime.positions import SINK_GROUP
from schemas.spec import ModelSpec
from schemas.topics import OBSERVATIONS
from streams.worker.app import GROUP as WORKER_GROUP

ByTurn = dict[str, dict[int, float]]
"""Name → turn → figure. What failed in a turn has none of it."""


def _none() -> ByTurn:
    return defaultdict(dict)


@dataclass
class Turns:
    """What was measured so far."""

    per_sec: ByTurn = field(default_factory=_none)
    cpu_us: ByTurn = field(default_factory=_none)
    """Of a row."""
    others: ByTurn = field(default_factory=_none)
    rss_mb: ByTurn = field(default_factory=_none)

    def add(self, turn: int, stage: str, run: Run, cpu_us: Mapping[str, float] | None = None) -> None:
        """One run. `cpu_us` is of processes that were not done with its rows when it ended."""
        self.per_sec[stage][turn] = run.rows_per_sec
        self.others[stage][turn] = run.others_cores
        for name, size in run.rss_bytes.items():
            self.rss_mb[f"{stage}: {name}"][turn] = size / 1e6
        known = cpu_us or {}
        for name in run.cpu_sec:
            self.cpu_us[f"{stage}: {name}"][turn] = known[name] if name in known else run.cpu_us_per_row(name)


def alone(
    at: Bench, spec: ModelSpec, pool: Bodies, rows: int, gateways: int, turn: int, found: Turns
) -> Backlog:
    """Gateways over a fresh backlog, which is returned; beside it what taking the requests cost the broker."""
    progress(f"{_many(gateways)} alone, {rows:,} rows")
    kafka = at.pids()["kafka"]
    before = cpu_sec(kafka)
    held = HeldBacklog(at.settings, request_topic(spec.name), pool, rows)
    took_us = (cpu_sec(kafka) - before) * 1e6
    at_work = [Service(at, "gateway", slot) for slot in range(gateways)]
    with running(*at_work):
        wait_shared(at_work, request_topic(spec.name), spec.serve.partitions)
        backlog = held.release()
        with closing(Committed(at.settings, GATEWAY_GROUP, backlog)) as committed:
            run = watch(
                committed, backlog.records, _pids(at, at_work), rows_per_record=backlog.rows_per_record,
                alive=_checks(at_work),
            )  # fmt: skip
    found.add(turn, "gateway", run)
    found.cpu_us["taking the requests: kafka"][turn] = took_us / backlog.rows
    progress(f"    {run.rows_per_sec:,.0f} rows/s")
    return backlog


def end_to_end(
    at: Bench, spec: ModelSpec, pool: Bodies, rows: int, gateways: int, turn: int, found: Turns
) -> None:
    """Gateways, sink and worker over a fresh backlog, until the last row is visible.

    The worker may have rows left then: its CPU is taken until it has none.
    """
    progress(f"{_many(gateways)}, end to end into ClickHouse, {rows:,} rows")
    sink, worker = Service(at, "sink"), Service(at, "worker")
    with at.clickhouse() as client, running(sink, worker):
        for service in (sink, worker):
            service.wait_ready()
        # What earlier stages left behind is no part of this one.
        for group in (SINK_GROUP, WORKER_GROUP):
            wait_caught_up(at.settings, group, OBSERVATIONS.name)
        held = HeldBacklog(at.settings, request_topic(spec.name), pool, rows)
        at_work = [Service(at, "gateway", slot) for slot in range(gateways)]
        everything = [*at_work, sink, worker]
        with running(*at_work):
            wait_shared(at_work, request_topic(spec.name), spec.serve.partitions)
            visible, before = Visible(client, spec.name), cpu_sec(worker.pid)
            backlog = held.release()
            with closing(Committed(at.settings, GATEWAY_GROUP, backlog)) as answered:
                run = watch(
                    visible, backlog.rows, _pids(at, everything), begun=answered, alive=_checks(everything)
                )
        wait_caught_up(at.settings, WORKER_GROUP, OBSERVATIONS.name)
        worker_us = (cpu_sec(worker.pid) - before) / backlog.rows * 1e6
    found.add(turn, "end to end", run, {"worker": worker_us})
    progress(f"    {run.rows_per_sec:,.0f} rows/s")


def _many(gateways: int) -> str:
    return "one gateway" if gateways == 1 else f"{gateways} gateways"


def _pids(at: Bench, services: Sequence[Service]) -> dict[str, int]:
    return {service.name: service.pid for service in services} | at.pids()


def _checks(services: Sequence[Service]) -> Callable[[], None]:
    def check() -> None:
        for service in services:
            service.check()

    return check
