"""`tidemill bench live`: requests at a fixed rate, end to end, and the highest rate at which lag does not grow.

Rates rise by half until one is too high, then the gap is halved. A rate holds when neither the gateway's lag nor ClickHouse's grows over the
second half of the step, beyond what commits in bursts make of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import click
import msgspec
import numpy as np

from benchmarks.deploy import deploy
from benchmarks.load import Backlog, Bodies, bodies, ends, produce_backlog, request_topic
from benchmarks.meter import Committed, StageFailed, Visible
from benchmarks.pace import Pace
from benchmarks.report import Line, Result, progress, show
from benchmarks.stages import Bench, Running, Service, bench, running
from inference.source import GROUP
from schemas.spec import load_spec
from warehouse.client import connect

MODEL: Final = "floats_8"
FIRST_PER_SEC: Final = 5_000
RISE: Final = 1.5
HALVINGS: Final = 2
STEP_SEC: Final = 12.0
QUICK_STEP_SEC: Final = 6.0
LOOK_EVERY_SEC: Final = 0.2
GROWTH_SHARE: Final = 0.03
"""A lag that grows by more than this share of the rate is growing."""
BURST_SEC: Final = 0.5
WARM_ROWS: Final = 200_000


class Sample(NamedTuple):
    """What was seen at one moment."""

    sec: float
    sent: int
    answered: int
    visible: int


class Step(NamedTuple):
    """One rate that was tried."""

    per_sec: float
    sent_per_sec: float
    holds: bool
    lag_rows: int
    """Sent and not visible at the end."""


@click.command()
@click.option("--step-sec", default=STEP_SEC, show_default=True, help="Seconds at each rate.")
@click.option("--first", default=FIRST_PER_SEC, show_default=True, help="The first rate.")
@click.option("--seed", default=0, show_default=True, help="Of the requests and the weights.")
@click.option("--quick", is_flag=True, help=f"{QUICK_STEP_SEC:g} seconds at each rate, no halving.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object, in the last line."
)
def command(step_sec: float, first: int, seed: int, quick: bool, as_json: bool) -> None:
    """The highest rate of requests at which lag does not grow, into ClickHouse."""
    show(measure(QUICK_STEP_SEC if quick else step_sec, first, 0 if quick else HALVINGS, seed), as_json)


def measure(step_sec: float, first: float, halvings: int, seed: int) -> Result:
    """Search."""
    steps: list[Step] = []
    with bench([MODEL]) as at:
        spec = load_spec(at.settings.models_dir / MODEL)
        deploy(at.settings, MODEL, seed=seed)
        pool = bodies(spec, "json", seed)
        services = [Service(at, name) for name in ("gateway", "sink", "worker")]
        with running(*services):
            for service in services:
                service.wait_ready()
            progress("warming")
            _finish(at, produce_backlog(at.settings, request_topic(MODEL), pool, WARM_ROWS))
            low, high, rate = 0.0, 0.0, float(first)
            while not high or halvings:
                steps.append(_step(at, pool, rate, step_sec))
                progress(
                    f"{rate:,.0f}/s: {'holds' if steps[-1].holds else 'lag grows'}, {steps[-1].lag_rows:,} rows behind"
                )
                if steps[-1].holds:
                    low = rate
                else:
                    high = rate
                if high:
                    halvings -= low > 0 and len(steps) > 1
                    rate = (low + high) / 2
                    if halvings < 0 or rate < first / 8:
                        break
                else:
                    rate *= RISE
    figures: dict[str, Any] = {"live_events_per_s": low or None, "steps": [step._asdict() for step in steps]}
    lines = [
        Line(
            f"at {step.per_sec:,.0f}/s",
            [float(step.lag_rows)],
            "rows behind",
            "holds" if step.holds else "lag grows",
        )
        for step in steps
    ]
    return Result("live", figures, lines, seed)


def grows(samples: Sequence[Sample], per_sec: float) -> bool:
    """Whether either lag grows over the second half: its slope is above the share, and by more than a burst."""
    half = [sample for sample in samples if sample.sec >= samples[-1].sec / 2]
    if len(half) < 3:
        return True
    at_sec = np.array([sample.sec for sample in half])
    for lags in ([s.sent - s.answered for s in half], [s.sent - s.visible for s in half]):
        slope = float(np.polyfit(at_sec, np.array(lags, np.float64), 1)[0])
        span_sec = at_sec[-1] - at_sec[0]
        if slope > GROWTH_SHARE * per_sec and slope * span_sec > BURST_SEC * per_sec:
            return True
    return False


def _step(at: Bench, pool: Bodies, per_sec: float, step_sec: float) -> Step:
    topic = request_topic(MODEL)
    file = at.folder / "pace.msgpack"
    file.write_bytes(
        msgspec.msgpack.encode(Pace(topic, per_sec, step_sec, list(pool.values), list(pool.headers)))
    )
    start = ends(at.settings, topic)
    backlog = Backlog(topic, start, start, 1)
    client = connect(at.settings.clickhouse_url, at.settings.clickhouse_user, at.settings.clickhouse_password)
    answered, visible = Committed(at.settings, GROUP, backlog), Visible(client, MODEL)
    samples: list[Sample] = []
    pace = Running(
        "pace",
        [sys.executable, "-P", "-m", "benchmarks.pace", str(file)],
        at.settings.environment(),
        at.folder,
    )
    with running(pace):
        begun = time.monotonic()
        while (now := time.monotonic()) - begun < step_sec:
            sent = sum(ends(at.settings, topic).values()) - sum(start.values())
            samples.append(Sample(now - begun, sent, answered(), visible()))
            time.sleep(LOOK_EVERY_SEC)
        last = samples[-1]
        _finish(at, Backlog(topic, start, ends(at.settings, topic), 1))
    answered.close()
    client.close()
    sent_per_sec = last.sent / last.sec
    # A producer that could not keep the rate has not shown that it holds.
    holds = not grows(samples, per_sec) and sent_per_sec > 0.9 * per_sec
    return Step(per_sec, round(sent_per_sec, 1), holds, last.sent - last.visible)


def _finish(at: Bench, backlog: Backlog, timeout_sec: float = 120.0) -> None:
    """Wait until all of the backlog is answered and visible, so that no step pays for another."""
    committed = Committed(at.settings, GROUP, backlog)
    deadline = time.monotonic() + timeout_sec
    while committed() < backlog.records:
        if time.monotonic() > deadline:
            raise StageFailed(f"a backlog is not answered after {timeout_sec:.0f} s")
        time.sleep(0.1)
    committed.close()
