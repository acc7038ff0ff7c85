"""`tidemill bench live`: requests at a fixed rate, end to end, and the highest rate at which lag does not grow.

Rates rise by half until one is too high, then the gap is halved. A rate holds when neither the gateway's lag nor ClickHouse's grows after the
first third of its step. The clock of a step starts when the first of its records is on the broker. What counts of the highest that holds is what
became visible, where that is less than what was sent: a lag may grow a little before it is told from commits that come in bursts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Final, NamedTuple

import click
import numpy as np
from clickhouse_connect.driver.client import Client

from benchmarks.deploy import deploy
from benchmarks.load import Backlog, Bodies, bodies, ends, produce_backlog, request_topic
from benchmarks.meter import Committed, Produced, Visible, wait_for
from benchmarks.options import JSON, quick_is, seed_of
from benchmarks.pacing import Pacer
from benchmarks.report import Line, Result, progress, show
from benchmarks.stages import Bench, Service, bench, running
from benchmarks.warm import warm
from inference.source import GROUP
from schemas.spec import load_spec

MODEL: Final = "floats_8"
FIRST_PER_SEC: Final = 5_000
RISE: Final = 1.5
LEAST_SHARE: Final = 1 / 8
"""Of the first rate; below it none is looked for."""
HALVINGS: Final = 2
STEP_SEC: Final = 20.0
QUICK_STEP_SEC: Final = 8.0
LOOK_EVERY_SEC: Final = 0.2
SETTLING_SHARE: Final = 1 / 3
"""Of a step, in which a lag may come to stand."""
GROWTH_SHARE: Final = 0.05
"""A lag that grows by more than this share of the rate is growing. Less cannot be told, in one step, from commits that come in bursts."""
KEPT_SHARE: Final = 0.95
"""A producer that sends less than this share of its rate has not kept it, so nothing is known of the rate."""
WARM_ROWS: Final = 200_000
LEAST_POINTS: Final = 4
HOLDS: Final = "holds"


class Point(NamedTuple):
    """A count at one moment of a step."""

    sec: float
    rows: int


class Step(NamedTuple):
    """One rate that was tried."""

    per_sec: float
    sent_per_sec: float
    """What came to the broker, measured."""
    visible_per_sec: float
    """Once lags have settled; the slope of a line, since rows become visible a part at a time."""
    lag_rows: int
    """Sent and not visible at the end."""
    verdict: str
    """holds, lag grows, or the producer is too slow."""

    @property
    def holds(self) -> bool:
        return self.verdict == HOLDS


@click.command()
@click.option("--step-sec", default=STEP_SEC, show_default=True, help="Seconds at each rate.")
@click.option("--first", default=FIRST_PER_SEC, show_default=True, help="The first rate.")
@seed_of()
@quick_is(f"{QUICK_STEP_SEC:g} seconds at each rate, no halving")
@JSON
def command(step_sec: float, first: int, seed: int, quick: bool, as_json: bool) -> None:
    """The highest rate of requests at which lag does not grow, into ClickHouse."""
    found = measure(QUICK_STEP_SEC if quick else step_sec, first, 0 if quick else HALVINGS, seed, quick)
    show(found._replace(quick=quick), as_json)


def measure(step_sec: float, first: float, halvings: int, seed: int, quick: bool) -> Result:
    """Search."""
    steps: list[Step] = []
    with bench([MODEL]) as at, at.clickhouse() as client:
        spec = load_spec(at.settings.models_dir / MODEL)
        deploy(at.settings, MODEL, seed=seed)
        pool = bodies(spec, "json", seed)
        services = [Service(at, name) for name in ("gateway", "sink", "worker")]
        with running(*services):
            for service in services:
                service.wait_ready()
            progress("warming")

            def backlog() -> None:
                visible = Visible(client, MODEL)
                made = produce_backlog(at.settings, request_topic(MODEL), pool, WARM_ROWS)
                wait_for(visible, made.rows, "rows visible of the backlog that warms")

            warm(at, backlog, once=quick)

            def holds(per_sec: float) -> bool:
                step = _step(at, client, pool, per_sec, step_sec)
                steps.append(step)
                progress(f"{per_sec:,.0f}/s: {_told(step)}")
                return step.holds

            search(holds, first, halvings)
    held = [step for step in steps if step.holds]
    best = max(held, key=lambda step: step.per_sec) if held else None
    figures: dict[str, Any] = {
        "live_events_per_s": min(best.sent_per_sec, best.visible_per_sec) if best else 0.0,
        "steps": [step._asdict() for step in steps],
    }
    lines = [
        Line(f"at {step.per_sec:,.0f}/s", [float(step.lag_rows)], "rows behind", _told(step))
        for step in sorted(steps)
    ]
    return Result("live", figures, lines, seed)


def search(holds: Callable[[float], bool], first: float, halvings: int) -> None:
    """Try rates: from `first` up until one does not hold, or down until one does; then the middle of the gap, `halvings` times.

    >>> tried = []
    >>> search(lambda rate: tried.append(rate) or rate < 2500, 1000, 2)
    >>> tried
    [1000, 1500.0, 2250.0, 3375.0, 2812.5, 2531.25]
    """
    low = high = 0.0
    rate = first
    while not (low and high):
        if holds(rate):
            low, rate = rate, rate * RISE
        else:
            high, rate = rate, rate / RISE
        if rate < first * LEAST_SHARE:
            return
    for _ in range(halvings):
        rate = (low + high) / 2
        if holds(rate):
            low = rate
        else:
            high = rate


def _step(at: Bench, client: Client, pool: Bodies, per_sec: float, step_sec: float) -> Step:
    topic = request_topic(MODEL)
    start = ends(at.settings, topic)
    seen: dict[str, list[Point]] = {"visible": [], "answered": [], "sent": []}
    with (
        closing(Produced(at.settings, topic)) as sent,
        closing(Committed(at.settings, GROUP, Backlog(topic, start, start, 1))) as answered,
    ):
        visible = Visible(client, MODEL)
        gauges: dict[str, Callable[[], int]] = {"visible": visible, "answered": answered, "sent": sent}
        # It would go on for longer than the step: how soon it begins and how fast it can be is not known.
        pace = Pacer(at, topic, pool, per_sec, 2 * step_sec)
        with running(pace):
            wait_for(sent, 1, "records of the paced producer", timeout_sec=60, alive=pace.check)
            begun = time.monotonic()
            while time.monotonic() - begun < step_sec or len(seen["sent"]) < LEAST_POINTS:
                for name, gauge in gauges.items():
                    rows = gauge()
                    seen[name].append(Point(time.monotonic() - begun, rows))
                time.sleep(LOOK_EVERY_SEC)
        # Nothing of this step is left to the next.
        all_sent = sent()
        wait_for(answered, all_sent, "requests answered after a step")
        wait_for(visible, all_sent, "rows visible after a step")
    return judged(per_sec, **seen)


def judged(
    per_sec: float, *, sent: Sequence[Point], answered: Sequence[Point], visible: Sequence[Point]
) -> Step:
    """What was seen in a step says of its rate."""
    growth = max(_slope(_behind(sent, reached)) for reached in (answered, visible))
    sent_per_sec = _per_sec(sent)
    verdict = HOLDS
    if growth > GROWTH_SHARE * per_sec:
        verdict = "lag grows"
    elif sent_per_sec < KEPT_SHARE * per_sec:
        verdict = "the producer is too slow"
    lag_rows = _behind(sent, visible)[-1].rows
    return Step(per_sec, round(sent_per_sec, 1), round(_slope(visible), 1), lag_rows, verdict)


def _behind(sent: Sequence[Point], reached: Sequence[Point]) -> list[Point]:
    """The lag at each moment at which it was asked what is reached: to ask takes time, so what was sent then is between two points."""
    at_sec, rows = zip(*sent, strict=True)
    return [Point(sec, int(np.interp(sec, at_sec, rows)) - done) for sec, done in reached]


def _slope(points: Sequence[Point]) -> float:
    """Rows a second by which a count or a lag grows once lags have settled."""
    settled = [point for point in points if point.sec >= points[-1].sec * SETTLING_SHARE]
    at_sec, rows = zip(*settled, strict=True)
    return float(np.polyfit(at_sec, rows, 1)[0])


def _per_sec(points: Sequence[Point]) -> float:
    return (points[-1].rows - points[0].rows) / (points[-1].sec - points[0].sec)


def _told(step: Step) -> str:
    return f"{step.verdict}; {step.sent_per_sec:,.0f}/s sent, {step.visible_per_sec:,.0f}/s visible, {step.lag_rows:,} rows behind"
