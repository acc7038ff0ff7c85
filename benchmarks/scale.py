"""`tidemill bench scale`: one gateway and two, and what a cluster would need for a million predictions per second.

The two are measured; the cluster is arithmetic over the CPU that each stage was measured to spend on a row, with every assumption shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import click

from benchmarks import labels, serving
from benchmarks.deploy import deploy
from benchmarks.load import bodies
from benchmarks.options import JSON, TURNS, quick_is, seed_of
from benchmarks.report import Line, Result, in_turns, median, progress, ratio, show
from benchmarks.serving import Turns
from benchmarks.stages import bench
from benchmarks.warm import warm
from schemas.spec import load_spec

MODEL: Final = "floats_8"
ROWS: Final = 1_200_000
"""Two gateways work off 400,000 in two seconds, of which much is their beginning: 187,000/s, and 224,000 over 1,500,000."""
QUICK_ROWS: Final = 200_000
WARM_ROWS: Final = 600_000
TARGET_PER_SEC: Final = 1_000_000
UTILISATION: Final = 0.6
"""Cores are planned to be busy for this share, so that a lost node or a peak does not make lag."""
REPLICAS: Final = 3
"""Copies of each Kafka record, each of which costs a broker what the one here costs."""
NODE_CORES: Final = 16
LABELS_PER_PREDICTION: Final = 0.1
"""What is known of a prediction later, and joined with it."""


@click.command()
@click.option("--rows", type=click.IntRange(min=10_000), help=f"Rows of a backlog.  [default: {ROWS:,}]")
@TURNS
@seed_of()
@quick_is("One turn, fewer rows")
@JSON
def command(rows: int | None, turns: int, seed: int, quick: bool, as_json: bool) -> None:
    """One and two gateways; a model of a cluster."""
    found = measure(rows or (QUICK_ROWS if quick else ROWS), 1 if quick else turns, seed, quick)
    show(found._replace(quick=quick), as_json)


def measure(rows: int, turns: int, seed: int, quick: bool) -> Result:
    """Measure one and two in turns on one stack, then all stages, then do the arithmetic."""
    one, two = Turns(), Turns()
    with bench([MODEL]) as at:
        spec = load_spec(at.settings.models_dir / MODEL)
        deploy(at.settings, MODEL, seed=seed)
        pool = bodies(spec, "json", seed)
        progress("warming")
        warm_rows = min(rows, WARM_ROWS)
        warm(at, lambda: serving.alone(at, spec, pool, warm_rows, 1, 0, Turns()), once=quick)
        for turn in range(1, turns + 1):
            progress(f"turn {turn} of {turns}")
            for gateways, found in ((1, one), (2, two)) if turn % 2 else ((2, two), (1, one)):
                serving.alone(at, spec, pool, rows, gateways, turn, found)
            serving.end_to_end(at, spec, pool, rows, 1, turn, one)
    # Fewer labels than that, and what broker and server do at all times would be called their cost.
    joined = labels.measure(labels.QUICK_PREDICTIONS, labels.LABELS, turns, seed)
    cpu_us = cpu_us_per_prediction(one, joined.figures["cpu_us_per_label"])
    rates = {"one gateway": one.per_sec["gateway"], "two gateways": two.per_sec["gateway"]}
    figures: dict[str, Any] = {
        "one_gateway_per_s": median(one.per_sec["gateway"].values()),
        "two_gateways_per_s": median(two.per_sec["gateway"].values()),
        "ratio_two_to_one": ratio(in_turns(two.per_sec["gateway"], one.per_sec["gateway"])),
        "cpu_us_per_row": {name: round(value, 3) for name, value in cpu_us.items()},
        "cluster": cluster(cpu_us),
        "assumptions": assumptions(),
    }
    lines = [Line(name, list(values.values()), "rows/s") for name, values in rates.items()]
    lines += [
        Line(f"cores for {TARGET_PER_SEC:,}/s: {name}", [float(cores)], "cores")
        for name, cores in figures["cluster"]["cores"].items()
    ]
    return Result("scale", figures, lines, seed, turns)


def cpu_us_per_prediction(found: Turns, of_a_label: Mapping[str, float]) -> dict[str, float]:
    """Process → µs of CPU for a prediction, end to end, with the broker's for taking its request and everybody's for its share of a label."""
    prefix = "end to end: "
    spent = {
        name.removeprefix(prefix): median(values.values()) or 0.0
        for name, values in found.cpu_us.items()
        if name.startswith(prefix)
    }
    spent["kafka"] += median(found.cpu_us["taking the requests: kafka"].values()) or 0.0
    for name, of_one in of_a_label.items():
        spent[name] = spent.get(name, 0.0) + LABELS_PER_PREDICTION * of_one
    return spent


def cluster(cpu_us: Mapping[str, float], per_sec: int = TARGET_PER_SEC) -> dict[str, Any]:
    """Cores of each stage for `per_sec`, from µs of CPU per row, and nodes of `NODE_CORES` for all.

    >>> cluster({"gateway": 6.0, "kafka": 1.0}, per_sec=100_000)
    {'per_sec': 100000, 'cores': {'gateway': 1, 'kafka': 1}, 'all_cores': 2, 'nodes': 3}
    """
    cores = {
        name: math.ceil(round(per_sec * spent / 1e6 * (REPLICAS if name == "kafka" else 1) / UTILISATION, 6))
        for name, spent in cpu_us.items()
    }
    total = sum(cores.values())
    return {
        "per_sec": per_sec, "cores": cores, "all_cores": total, "nodes": max(REPLICAS, math.ceil(total / NODE_CORES)),
    }  # fmt: skip


def assumptions() -> list[str]:
    """What the arithmetic takes for granted."""
    return [
        "a stage's CPU per row stays what it is here, on cores like these: none is shared, none waits for another",
        "ClickHouse's merges that begin after the last row is visible are left out, and so are training and control, whose work goes by the version and not by the row",
        f"a label for {LABELS_PER_PREDICTION:.0%} of the predictions, joined as `bench labels` joins them; what sink and worker spend on the outcome is left out",
        "enough partitions for the members of each group; keys spread rows evenly over them",
        f"cores are planned to be busy for {UTILISATION:.0%} of the time",
        f"each Kafka record is written {REPLICAS} times, at the cost of one here for each copy, which is more than it is: a copy is read by its stages once",
        "a model as small as this one: a larger one adds its own time on Triton's side, or a GPU",
        "network and disks carry the bytes: per row about 0.2 KB of request, 0.2 KB of prediction and 0.1 KB of observation, compressed less",
    ]
