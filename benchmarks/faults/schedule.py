"""Which faults hit what, when and for how long: data and one seeded draw. Any seed gives a schedule; one seed gives one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from schemas.errors import UserError

LONE: Final = ("control", "training", "majors")
"""Services of which there is one; nobody takes over."""
SERVICES: Final = (
    "gateway-0", "gateway-1", "sink-0", "sink-1", "labels-0", "labels-1", "worker-0", "worker-1", *LONE,
)  # fmt: skip
SERVERS: Final = ("triton", "clickhouse", "kafka")
SPARES: Final = ("gateway-2", "sink-2", "labels-2", "worker-2")
"""Replicas that run only while a scale-out lasts."""
KAFKA_LINKS: Final = tuple(
    f"{name}-kafka" for name in ("gateway", "sink", "labels", "worker", "control", "training", "majors")
)
CLICKHOUSE_LINKS: Final = ("sink-clickhouse", "labels-clickhouse", "training-clickhouse")
"""Majors under this load are fitted on a file: that lane asks ClickHouse nothing."""
TRITON_LINKS: Final = ("gateway-triton", "control-triton")
LINKS: Final = (*KAFKA_LINKS, *TRITON_LINKS, *CLICKHOUSE_LINKS)

Recovery = Literal["ordinary", "restart", "long"]
"""What its recovery time is reported with: restarts of broker and warehouse and long stops stand apart."""


class Kind(NamedTuple):
    """A kind of fault: what it hits, for how long (seconds), and how often relative to the others."""

    name: str
    targets: tuple[str, ...]
    shortest_sec: float
    longest_sec: float
    weight: float
    recovery: Recovery = "ordinary"


KINDS: Final = (
    Kind("kill", (*SERVICES, "triton", "stub"), 0, 0, 28),
    Kind("kill_server", ("clickhouse", "kafka"), 0, 0, 5, "restart"),
    Kind("restart", ("clickhouse", "kafka"), 0, 0, 4, "restart"),
    Kind("terminate", (*SERVICES, "triton"), 0, 0, 6),
    Kind("stop", (*SERVICES, *SERVERS, "stub"), 0.3, 3, 14),
    # Past the session time-out of consumers (10 s) and past the transaction's (5 s).
    Kind("stop_past_session", (*SERVICES, "triton", "clickhouse", "kafka"), 11, 16, 5, "long"),
    # Past the time that a sink waits for an INSERT (60 s).
    Kind("stop_past_insert", ("clickhouse", "sink-0", "sink-1"), 62, 70, 0.7, "long"),
    Kind("cut", LINKS, 0.1, 5, 12),
    Kind("stall", LINKS, 1, 5, 6),
    Kind("stall_past_session", KAFKA_LINKS, 11, 16, 2, "long"),
    Kind("delay", LINKS, 2, 8, 6),
    Kind("lose_answers", LINKS, 0.5, 4, 10),
    Kind("disk_full", ("sink-clickhouse",), 2, 8, 3),
    Kind("too_many_parts", ("sink-clickhouse",), 2, 8, 2),
    Kind("scale_in", ("gateway-1", "sink-1", "labels-1", "worker-1"), 2, 8, 4),
    Kind("scale_out", SPARES, 3, 10, 4),
    Kind("recreate", ("requests",), 0, 0, 0.5),
)  # fmt: skip
"""`recreate` deletes and recreates the request topic, once everything in it is answered."""


class Fault(NamedTuple):
    """One fault of a schedule."""

    number: int
    kind: str
    target: str
    begin_sec: float
    """Since the load began; later if too many are active or its target is busy, and then all that follow are as much later."""
    duration_sec: float
    recovery: Recovery

    def __str__(self) -> str:
        lasts = f" for {self.duration_sec:.1f} s" if self.duration_sec else ""
        return f"{self.kind} {self.target}{lasts}"


def choose(only: Sequence[str], longest_sec: float) -> list[Kind]:
    """The kinds that `only` names as `kind` or `kind:target` (all of them if it is empty), none longer than `longest_sec`.

    Raises:
        UserError: no such kind or target.
    """
    known = {kind.name: kind for kind in KINDS}
    chosen: list[Kind] = []
    for wanted in only or known:
        name, _, target = wanted.partition(":")
        if name not in known:
            raise UserError(f"--only: no kind {name!r}; expected one of {', '.join(known)}")
        kind = known[name]
        if target and target not in kind.targets:
            raise UserError(f"--only {wanted}: {name} hits {', '.join(kind.targets)}")
        chosen.append(kind._replace(targets=(target,)) if target else kind)
    fitting = [
        kind._replace(longest_sec=min(kind.longest_sec, longest_sec))
        for kind in chosen
        if kind.shortest_sec <= longest_sec
    ]
    if not fitting:
        raise UserError(f"--longest {longest_sec:g}: every chosen kind of fault lasts longer")
    return fitting


def draw(seed: int, count: int, duration_sec: float, kinds: Sequence[Kind]) -> list[Fault]:
    """`count` faults within `duration_sec`, in order of their begin. Every kind comes before any comes by weight alone, if there is room;
    what is broken already is not hit again, if there is anything else to hit.

    >>> draw(7, 3, 30.0, KINDS) == draw(7, 3, 30.0, KINDS), len(draw(7, 300, 900.0, KINDS))
    (True, 300)
    """
    rng = random.Random(seed)
    every = list(kinds) if count >= len(kinds) else []
    drawn = every + rng.choices(kinds, [kind.weight for kind in kinds], k=count - len(every))
    rng.shuffle(drawn)
    begins = sorted(rng.uniform(0, duration_sec) for _ in range(count))
    faults: list[Fault] = []
    free_at_sec: dict[str, float] = {}
    for number, (kind, begin_sec) in enumerate(zip(drawn, begins, strict=True)):
        free = [target for target in kind.targets if free_at_sec.get(process_of(target), 0.0) <= begin_sec]
        target = rng.choice(free or kind.targets)
        lasts_sec = rng.uniform(kind.shortest_sec, kind.longest_sec)
        free_at_sec[process_of(target)] = begin_sec + lasts_sec
        faults.append(Fault(number, kind.name, target, begin_sec, lasts_sec, kind.recovery))
    return faults


def process_of(target: str) -> str:
    """The target, and Triton for its stub: they die together."""
    return "triton" if target == "stub" else target
