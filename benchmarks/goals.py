"""What the benchmarks are to show, on two cores without a GPU: one that falls short says so and fails, so that no figure gets worse unseen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple


class Goal(NamedTuple):
    """A bound on a figure, of the runs whose other figures are those of `where`."""

    figure: str
    bound: Literal["at least", "at most"]
    value: float
    where: Mapping[str, Any] = {}


class Met(NamedTuple):
    """A goal beside what was found."""

    figure: str
    bound: str
    value: float
    found: float
    met: bool


_SMALL: Final = {"subject": "floats_8", "format": "json"}

GOALS: Final[Mapping[str, tuple[Goal, ...]]] = {
    "throughput": (
        Goal("gateway_events_per_s", "at least", 220_000, {**_SMALL, "gateways": 2}),
        Goal("gateway_cpu_us_per_record", "at most", 4, _SMALL),
        Goal("ratio_to_limit", "at least", 0.7, _SMALL),
        Goal("events_per_s", "at least", 150_000, _SMALL),
        Goal("ratio_to_mlserver", "at least", 200, _SMALL),
        Goal("ratio_to_quix_per_message", "at least", 40, _SMALL),
        Goal("gateway_events_per_s", "at least", 20_000, {"subject": "floats_784", "format": "json"}),
        Goal("gateway_events_per_s", "at least", 100_000, {"subject": "floats_784", "format": "arrow"}),
        Goal("gateway_mb_max", "at most", 300),
    ),
    "live": (Goal("live_events_per_s", "at least", 80_000),),
    "latency": (Goal("added_p50_ms", "at most", 3), Goal("added_p99_ms", "at most", 10)),
    "ingest": (Goal("rows_per_s", "at least", 500_000), Goal("visible_p99_ms", "at most", 1000)),
    "processors": (Goal("rows_per_s", "at least", 1_000_000),),
    "labels": (Goal("labels_per_s", "at least", 15_000),),
    "scale": (Goal("two_gateways_per_s", "at least", 220_000),),
    "memory": (Goal("gateway_mb_max", "at most", 300),),
}


def compare(benchmark: str, figures: Mapping[str, Any]) -> list[Met]:
    """The goals of a run beside its figures; of what was not measured (None) nothing is said.

    >>> compare("live", {"live_events_per_s": 90_000.0})
    [Met(figure='live_events_per_s', bound='at least', value=80000, found=90000.0, met=True)]
    >>> compare("live", {"live_events_per_s": None})
    []
    """
    return [
        Met(goal.figure, goal.bound, goal.value, found, _holds(goal, found))
        for goal in GOALS.get(benchmark, ())
        if all(figures[name] == value for name, value in goal.where.items())
        and (found := figures[goal.figure]) is not None
    ]


def _holds(goal: Goal, found: float) -> bool:
    return found >= goal.value if goal.bound == "at least" else found <= goal.value
