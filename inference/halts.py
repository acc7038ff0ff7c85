"""Partitions that have halted: told to people once, tried again when the route changes and now and then.

Trying again costs one micro-batch, which crosses the limit again if the cause persists; so whoever mends it need not restart anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from inference.model import Model
from inference.progress import Assignment, Slice
from runtime.clock import Clock
from runtime.positions import Place
from schemas.events import Alert
from schemas.identity import name_id

RETRY_SEC: Final = 15.0


@dataclass(frozen=True)
class _Halt:
    revision: int
    since_sec: float


class Halts:
    """What is known of the halted partitions of this process."""

    def __init__(
        self, models: Mapping[str, Model], clock: Clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`models` by topic."""
        self._models = models
        self._clock = clock
        self._monotonic = monotonic
        self._halts: dict[Place, _Halt] = {}
        self._told: set[str] = set()

    def halted(self, piece: Slice) -> Alert | None:
        """The partition of `piece` has halted before it. The alert, if nobody was told of a halt at this offset."""
        assignment = piece.assignment
        model = self._models[assignment.topic]
        place = (assignment.topic, assignment.partition)
        self._halts[place] = _Halt(model.route.revision if model.route else 0, self._monotonic())
        # Deterministic: a successor that halts at the same offset says the same.
        event_id = str(
            name_id("gateway halted", assignment.topic_id, assignment.partition, assignment.committed)
        )
        if event_id in self._told:
            return None
        subject = f"{assignment.topic}:{assignment.partition}"
        output = piece.output
        return Alert(
            event_id=event_id,
            model=model.spec.name,
            at_ms=self._clock(),
            kind="partition_halted",
            severity="severe",
            subject=subject,
            version="",
            message=f"the gateway halted {subject} at offset {assignment.committed}: {assignment.halted}",
            evidence={
                "topic_id": str(assignment.topic_id),
                "committed_offset": assignment.committed,
                "reason": assignment.halted,
                "reasons": dict(output.reasons) if output is not None else {},
            },
        )

    def told(self, alert: Alert) -> None:
        """`alert` is committed."""
        self._told.add(alert.event_id)

    def due(self, assignments: Iterable[Assignment]) -> list[Assignment]:
        """The halted partitions that are to be tried again: their route has changed, or it is time."""
        now_sec = self._monotonic()
        found = []
        for assignment in assignments:
            halt = self._halts.get((assignment.topic, assignment.partition))
            if not assignment.halted or halt is None:
                continue
            route = self._models[assignment.topic].route
            changed = route is not None and route.revision != halt.revision
            if changed or now_sec - halt.since_sec >= RETRY_SEC:
                found.append(assignment)
        return found
