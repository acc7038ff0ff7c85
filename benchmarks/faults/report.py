"""The result as one object, and as text."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from benchmarks.faults.account import Account
from benchmarks.faults.actions import SIGNALLED, Event, affected, lone
from benchmarks.faults.monitor import Recovery
from benchmarks.faults.schedule import Recovery as Class
from benchmarks.faults.schedule import process_of

CLASSES: Final[tuple[Class, ...]] = ("ordinary", "restart", "long")
"""The later, the longer it may take."""
ORDINARY_SEC: Final = 15.0
"""What an ordinary recovery may take: a fault that had so long for itself is not excused by what came then."""


def result(
    account: Account, events: Iterable[Event], recoveries: Mapping[int, Recovery], memory_bytes: Mapping[str, int],
    *, seed: int, audit: Mapping[str, Any], load_sec: float, cells: int, bug: str, problems: list[str],
    restarts: Mapping[str, int], planned: int,
) -> dict[str, Any]:  # fmt: skip
    """One object; `ok` is the verdict."""
    events = list(events)
    took: dict[Class, list[float]] = defaultdict(list)
    slowest: dict[str, list[float]] = defaultdict(list)
    for event in events:
        recovery = recoveries.get(event.fault.number)
        if recovery is not None:
            if not lone(event.fault):
                took[counted_as(event, events)].append(recovery.took_sec)
            slowest[lone(event.fault) or recovery.slowest].append(recovery.took_sec)
        elif not event.failure:
            problems = [*problems, f"{event.fault}: its stages did not recover"]
    problems = problems + [f"{event.fault}: {event.failure}" for event in events if event.failure]
    counts = {name: value for name, value in asdict(account).items() if name != "examples"}
    broken = account.broken
    return {
        "ok": not broken and not problems and bool(audit.get("ok")),
        "seed": seed,
        "bug": bug,
        "faults": len(events),
        "planned": planned,
        **counts,
        **{
            f"recovery{'' if kind == 'ordinary' else '_' + kind}_{name}_s": percentile(took[kind], share)
            for kind in CLASSES
            for name, share in (("p50", 50), ("p99", 99), ("max", 100))
        },
        "recovered": {kind: len(took[kind]) for kind in CLASSES},
        "slowest_p99_s": {stage: percentile(some, 99) for stage, some in sorted(slowest.items())},
        "rows_per_sec": round(account.events / load_sec) if load_sec else 0,
        "load_sec": round(load_sec, 1),
        "metrics_cells": cells,
        "memory_peak_mb": {name: round(size / 1e6) for name, size in sorted(memory_bytes.items())},
        "by_kind": _by_kind(events),
        "idle_faults": sum(event.met == 0 for event in events),
        "links_met": _met(events),
        "unplanned_restarts": unplanned(restarts, events),
        "audit": dict(audit),
        "broken": broken,
        "problems": problems,
        "examples": account.examples,
    }


def counted_as(event: Event, events: Iterable[Event]) -> Class:
    """The gravest kind of recovery that was under way in a stage that `event` hit, while `event` recovered: a cut connection that ends
    while the broker starts recovers when the broker does. What began when `event` should have recovered changes nothing."""
    end, recovered, stages = event.ended_sec, event.recovered_sec, set(affected(event.fault))
    until = math.inf if end is None else end + ORDINARY_SEC
    if recovered is not None:
        until = min(until, recovered)
    found = [event.fault.recovery]
    for other in events:
        over = other.recovered_sec
        overlaps = other.began_sec < until and (over is None or end is None or over > end)
        if overlaps and stages.intersection(affected(other.fault)):
            found.append(other.fault.recovery)
    return max(found, key=CLASSES.index)


def percentile(values: list[float], share: float) -> float | None:
    """In seconds, to the hundredth; None of nothing."""
    return round(float(np.percentile(values, share)), 2) if values else None


def _by_kind(events: Iterable[Event]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for event in events:
        counts[event.fault.kind] += 1
    return dict(sorted(counts.items()))


def _met(events: Iterable[Event]) -> dict[str, int]:
    """How much traffic the faults of each link met."""
    counts: dict[str, int] = defaultdict(int)
    for event in events:
        if event.met is not None:
            counts[event.fault.target] += event.met
    return dict(sorted(counts.items()))


def unplanned(restarts: Mapping[str, int], events: Iterable[Event]) -> dict[str, int]:
    """By process, how often it was started again beyond what the faults made it: it ended by itself, or the supervisor ended it."""
    planned = Counter(
        process_of(event.fault.target)
        for event in events
        if event.fault.kind in SIGNALLED and not event.failure
    )
    return {name: count - planned[name] for name, count in sorted(restarts.items()) if count > planned[name]}


def lines(found: Mapping[str, Any]) -> list[str]:
    """What a person reads."""
    verdict = "every guarantee holds" if found["ok"] else "BROKEN"
    early = f" of {found['planned']}" if found["faults"] < found["planned"] else ""
    text = [
        f"{found['faults']}{early} faults over {found['events']:,} requests and {found['feedback']:,} feedback records"
        f" ({found['rows_per_sec']:,} rows/s), seed {found['seed']}: {verdict}",
        f"  lost {found['lost']}, duplicated {found['duplicated']}, torn {found['torn']}, misordered {found['misordered']}, "
        f"poison {found['poison_dead_lettered']} of {found['poison_injected']} dead-lettered",
        f"  outcomes {found['outcomes']:,}, {found['outcomes_mismatch']} wrong; "
        f"counters {found['metrics_cells']:,}, {found['metrics_mismatch']} wrong; "
        f"shadow rows {found['shadow_rows']:,}, {found['shadow_missing']} missing",
        f"  orders to train {found['orders']:,}, {found['orders_refused']} refused, {found['orders_mismatch']} wrong",
        f"  recovery p50 {found['recovery_p50_s']} s, p99 {found['recovery_p99_s']} s; "
        f"after restarts of broker and warehouse {found['recovery_restart_p99_s']} s; after long stops {found['recovery_long_p99_s']} s",
        "  p99 by the stage that came last: "
        + ", ".join(f"{stage} {seconds} s" for stage, seconds in found["slowest_p99_s"].items()),
    ]  # fmt: skip
    text.append(f"  {found['idle_faults']} faults of links met no traffic")
    if found["unplanned_restarts"]:
        text.append(
            "  restarts that no fault made: "
            + ", ".join(f"{name} {count}" for name, count in found["unplanned_restarts"].items())
        )
    text += [f"  broken: {name} {count}" for name, count in found["broken"].items()]
    text += [f"  problem: {problem}" for problem in found["problems"]]
    text += [f"  {name}: {example}" for name, some in found["examples"].items() for example in some]
    return text
