"""The label that comes last holds, whatever time it speaks of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.faults.bugs import replace
from streams.labels import batch
from streams.labels.record import Label
from streams.labels.revisions import Known


def apply() -> None:
    """Whatever was known is older than anything."""

    def by_arrival(labels: Sequence[tuple[Label, str]], known: Mapping[str, Known]) -> object:
        return original(labels, {name: each._replace(at_ms=-1) for name, each in known.items()})

    original = replace(batch, "decide", by_arrival)
