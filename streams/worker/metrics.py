"""Observations and outcomes → sums by window, arm, version and segment."""

from __future__ import annotations

import pyarrow as pa

from schemas.events import MetricPartial
from schemas.spec import ModelSpec
from stats.partials import Sums, WindowKey, add_all, observation_sums, outcome_sums


class Metrics:
    """What one source partition added since the last save."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], dict[WindowKey, Sums]] = {}

    def observe(self, spec: ModelSpec, batch: pa.RecordBatch) -> None:
        """Add a batch of observations of one model, answered and rejected."""
        self._add(spec, observation_sums(batch, spec.monitor.window_sec * 1000))

    def label(self, spec: ModelSpec, batch: pa.RecordBatch) -> None:
        """Add a batch of outcomes of one model."""
        self._add(spec, outcome_sums(batch, spec.monitor.window_sec * 1000, spec.classes))

    @property
    def size(self) -> int:
        """Keys held."""
        return sum(len(sums) for sums in self._sums.values())

    def drain(self, source: str, through_offset: int) -> list[MetricPartial]:
        """What was added, and forget it: the merge stage adds it up."""
        taken, self._sums = self._sums, {}
        return [
            MetricPartial(
                model=model,
                source=source,
                through_offset=through_offset,
                window_start_ms=key.window_start_ms,
                window_sec=window_sec,
                role=key.role,
                arm=key.arm,
                version=key.version,
                segment=key.segment,
                rows=sums.rows,
                rejected=sums.rejected,
                labelled=sums.labelled,
                correct=sums.correct,
                loss_sum=sums.loss_sum,
                brier_sum=sums.brier_sum,
                confusion=sums.confusion.tolist(),
                latency_ms=sums.latency_ms.tolist(),
            )
            for (model, window_sec), by_key in taken.items()
            for key, sums in by_key.items()
        ]

    def _add(self, spec: ModelSpec, found: dict[WindowKey, Sums]) -> None:
        add_all(self._sums.setdefault((spec.name, spec.monitor.window_sec), {}), found)
