"""`tidemill bench scale`: one gateway and two, and what a cluster would need for a million predictions per second.

The two are measured; the cluster is arithmetic over the CPU that each stage was measured to spend on a row, with every assumption shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import click

from benchmarks import throughput
from benchmarks.report import Line, Result, median, progress, ratio, show

TARGET_PER_SEC: Final = 1_000_000
UTILISATION: Final = 0.6
"""Cores are planned to be busy for this share, so that a lost node or a peak does not make lag."""
REPLICAS: Final = 3
"""Copies of each Kafka record, each of which costs a broker what the one here costs."""
NODE_CORES: Final = 16


@click.command()
@click.option(
    "--rows", type=click.IntRange(min=10_000), default=400_000, show_default=True, help="Rows of a backlog."
)
@click.option(
    "--turns",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Turns, of which the median counts.",
)
@click.option("--seed", default=0, show_default=True, help="Of the requests and the weights.")
@click.option("--quick", is_flag=True, help="One turn, half the rows.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object, in the last line."
)
def command(rows: int, turns: int, seed: int, quick: bool, as_json: bool) -> None:
    """One and two gateways; a model of a cluster."""
    show(measure(rows // 2 if quick else rows, 1 if quick else turns, seed), as_json)


def measure(rows: int, turns: int, seed: int) -> Result:
    """Measure both, then do the arithmetic."""
    found: dict[int, Any] = {}
    for gateways in (1, 2):
        progress(f"{gateways} gateway{'s' if gateways > 1 else ''}")
        stage = "all" if gateways == 1 else "gateway"
        found[gateways] = throughput.measure("floats_8", "json", stage, rows, gateways, turns, False, seed)
    rates = {
        gateways: next(line.values for line in result.lines if line.what == "gateway")
        for gateways, result in found.items()
    }
    cpu_us = {
        line.what.removeprefix("CPU end to end: "): median(line.values) or 0.0
        for line in found[1].lines
        if line.what.startswith("CPU end to end: ")
    }
    figures: dict[str, Any] = {
        "one_gateway_per_s": median(rates[1]),
        "two_gateways_per_s": median(rates[2]),
        "ratio_two_to_one": ratio(rates[2], rates[1]),
        "cpu_us_per_row": {name: round(value, 3) for name, value in cpu_us.items()},
        "cluster": cluster(cpu_us),
        "assumptions": assumptions(),
    }
    lines = [
        Line(f"{n} gateway{'s' if n > 1 else ''}", list(values), "rows/s") for n, values in rates.items()
    ]
    lines += [
        Line(f"cores for {TARGET_PER_SEC:,}/s: {name}", [float(cores)], "cores")
        for name, cores in figures["cluster"]["cores"].items()
    ]
    return Result("scale", figures, lines, seed, turns)


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
        "enough partitions for the members of each group; keys spread rows evenly over them",
        f"cores are planned to be busy for {UTILISATION:.0%} of the time",
        f"each Kafka record is written {REPLICAS} times, at the cost of one here for each copy",
        "a model as small as this one: a larger one adds its own time on Triton's side, or a GPU",
        "network and disks carry the bytes: per row about 0.2 KB of request, 0.2 KB of prediction and 0.1 KB of observation, compressed less",
    ]
