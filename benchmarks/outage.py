"""`tidemill bench outage`: a part stops answering under load; what waits for it must wait in Kafka, not in memory.

The part is stopped, not ended: its connections stay open and nothing comes back, which is worse than a refusal. First the services work off a
backlog at full speed, so that what they may hold they have held once; the most they held until then is what the outage is compared with.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import click
import psutil

from benchmarks.deploy import deploy
from benchmarks.load import Backlog, Bodies, bodies, ends, produce_backlog, request_topic
from benchmarks.meter import Committed, Lag, StageFailed, count, wait_for
from benchmarks.options import JSON, seed_of
from benchmarks.pacing import Pacer
from benchmarks.report import Line, Result, progress, show
from benchmarks.stages import Bench, Service, bench, running
from control.audit import audit
from inference.source import GROUP as GATEWAY_GROUP
from runtime.positions import SINK_GROUP
from schemas.spec import load_spec
from schemas.topics import OBSERVATIONS

MODEL: Final = "floats_8"
FULL_SPEED_ROWS: Final = 300_000
BEFORE_SEC: Final = 20.0
"""At the paced rate, between the backlog and the outage."""
SAMPLE_SEC: Final = 1.0
TELL_EVERY: Final = 15
"""Samples between two lines of progress."""
LIMIT_PCT: Final = 10.0
RECOVERY_SEC: Final = 600.0
AUDIT_SEC: Final = 60.0
STAGES: Final = ("gateway", "sink")


class Sample(NamedTuple):
    """One moment; by name of the stage."""

    sec: float
    rss_bytes: Mapping[str, int]
    lag_records: Mapping[str, int]


@click.command()
@click.option(
    "--away", type=click.Choice(("triton", "clickhouse")), required=True, help="What stops answering."
)
@click.option("--minutes", default=10.0, show_default=True, help="For so long.")
@click.option("--rate", default=2000.0, show_default=True, help="Requests a second, before it and meanwhile.")
@seed_of()
@JSON
def command(away: str, minutes: float, rate: float, seed: int, as_json: bool) -> None:
    """Memory of gateway and sink while Triton or ClickHouse is away under load.

    The exit code is 1 if a peak is more than 10 % above the one before, if the memory of the last fifth of the outage is more than 10 % above
    that of the second, or if the audit finds anything.
    """
    result = measure(away, 60 * minutes, rate, seed)
    show(result, as_json)
    if not result.figures["ok"]:
        sys.exit(1)


def measure(away: str, away_sec: float, rate: float, seed: int) -> Result:
    """Full speed, the paced rate, the outage at that rate, then the way back."""
    with bench([MODEL]) as at:
        spec = load_spec(at.settings.models_dir / MODEL)
        deploy(at.settings, MODEL, seed=seed)
        pool = bodies(spec, "json", seed)
        services = [Service(at, name) for name in STAGES]
        with running(*services), _watching(at, services) as sample:
            for service in services:
                service.wait_ready()
            progress(f"{FULL_SPEED_ROWS:,} rows at full speed, then {rate:,.0f}/s")
            before = _full_speed(at, pool, sample)
            # It would go on for longer: it is told to stop.
            with running(Pacer(at, request_topic(MODEL), pool, rate, 2 * (BEFORE_SEC + away_sec))):
                before += _sampled(sample, BEFORE_SEC)
                progress(f"{away} is away for {away_sec:,.0f} s")
                with _stopped(at, away):
                    during = _sampled(sample, away_sec)
            progress("back")
            recovery_sec, rows = _recovered(at)
        audited = audit(at.settings, [MODEL], AUDIT_SEC)
    stage = "gateway" if away == "triton" else "sink"
    held = {
        name: ([s.rss_bytes[name] for s in before], [s.rss_bytes[name] for s in during]) for name in STAGES
    }
    growth = {name: growth_pct(*held[name]) for name in STAGES}
    drift = {name: drift_pct(held[name][1]) for name in STAGES}
    figures: dict[str, Any] = {
        "away": away,
        "away_sec": away_sec,
        "rows": rows,
        **{f"{name}_memory_growth_pct": growth[name] for name in STAGES},
        **{f"{name}_memory_drift_pct": drift[name] for name in STAGES},
        "lag_before_records": before[-1].lag_records[stage],
        "lag_after_records": during[-1].lag_records[stage],
        "recovery_sec": recovery_sec,
        "audit_ok": audited.ok,
        "ok": audited.ok and all(each <= LIMIT_PCT for each in (*growth.values(), *drift.values())),
    }
    lines = [line for name in STAGES for line in _lines(name, before, during)]
    return Result("outage", figures, lines, seed)


def growth_pct(before: Sequence[int], during: Sequence[int]) -> float:
    """How much higher the peak of `during` is than that of `before`, in percent."""
    return round(100 * (max(during) / max(before) - 1), 2)


def drift_pct(during: Sequence[int]) -> float:
    """How much higher the median of the last fifth is than that of the second, in percent: in the first the time-outs begin."""
    fifth = len(during) // 5
    if not fifth:
        return 0.0
    second, last = statistics.median(during[fifth : 2 * fifth]), statistics.median(during[-fifth:])
    return round(100 * (last / second - 1), 2)


def _lines(name: str, before: Sequence[Sample], during: Sequence[Sample]) -> Iterator[Line]:
    for what, samples in (("before", before), ("meanwhile", during)):
        sizes = [sample.rss_bytes[name] / 1e6 for sample in samples]
        yield Line(f"{name}, {what}: median", [statistics.median(sizes)], "MB", f"peak {max(sizes):.1f}")


@contextlib.contextmanager
def _watching(at: Bench, services: Sequence[Service]) -> Iterator[Callable[[], Sample]]:
    """How much each stage holds, and how far it is behind."""
    handles = {service.name: psutil.Process(service.pid) for service in services}
    lags = {
        "gateway": Lag(at.settings, GATEWAY_GROUP, request_topic(MODEL)),
        "sink": Lag(at.settings, SINK_GROUP, OBSERVATIONS.name),
    }
    started = time.monotonic()

    def sample() -> Sample:
        for service in services:
            service.check()
        return Sample(
            time.monotonic() - started,
            {name: handle.memory_info().rss for name, handle in handles.items()},
            {name: lag() for name, lag in lags.items()},
        )

    try:
        yield sample
    finally:
        for lag in lags.values():
            lag.close()


def _sampled(sample: Callable[[], Sample], sec: float) -> list[Sample]:
    """A sample a second for so long, at least one."""
    begun = time.monotonic()
    found = [sample()]
    for tick in itertools.count(1):
        due = begun + min(tick * SAMPLE_SEC, sec)
        time.sleep(max(0.0, due - time.monotonic()))
        if tick * SAMPLE_SEC >= sec:
            return found
        found.append(sample())
        if tick % TELL_EVERY == 0:
            progress(_told(found[-1]))
    raise AssertionError("counted to the end")


def _told(sample: Sample) -> str:
    each = (
        f"{name} {sample.rss_bytes[name] / 1e6:.1f} MB, {sample.lag_records[name]:,} behind"
        for name in STAGES
    )
    return f"{sample.sec:5.0f} s: {'; '.join(each)}"


def _full_speed(at: Bench, pool: Bodies, sample: Callable[[], Sample]) -> list[Sample]:
    """Samples while a backlog is worked off as fast as it can be."""
    produce_backlog(at.settings, request_topic(MODEL), pool, FULL_SPEED_ROWS)
    deadline = time.monotonic() + RECOVERY_SEC
    found = [sample()]
    while any(found[-1].lag_records.values()):
        if time.monotonic() > deadline:
            raise StageFailed(f"a backlog of {FULL_SPEED_ROWS:,} rows takes longer than {RECOVERY_SEC:.0f} s")
        time.sleep(SAMPLE_SEC / 4)
        found.append(sample())
    progress(_told(found[-1]))
    return found


@contextlib.contextmanager
def _stopped(at: Bench, part: str) -> Iterator[None]:
    """The part's process does nothing, and is there."""
    process = psutil.Process(at.stack.kill(part, signal.SIGSTOP))
    try:
        yield
    finally:
        process.resume()


def _recovered(at: Bench) -> tuple[float, int]:
    """Seconds until everything that was sent is answered and visible in ClickHouse, and how many rows that are."""
    back = time.monotonic()
    topic = request_topic(MODEL)
    end = ends(at.settings, topic)
    backlog = Backlog(topic, dict.fromkeys(end, 0), end, 1)
    with (
        at.clickhouse() as client,
        contextlib.closing(Committed(at.settings, GATEWAY_GROUP, backlog)) as answered,
    ):
        wait_for(answered, backlog.records, "requests answered after the outage", timeout_sec=RECOVERY_SEC)
        left_sec = RECOVERY_SEC - (time.monotonic() - back)
        wait_for(
            lambda: count(client, "SELECT count() FROM internal.observations"), backlog.records,
            "rows visible after the outage", timeout_sec=left_sec,
        )  # fmt: skip
    return round(time.monotonic() - back, 2), backlog.records
