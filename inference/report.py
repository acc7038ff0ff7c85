"""What the gateway says of itself: a stage a partition, gauges, and whether it is ready."""

from __future__ import annotations

from collections.abc import Mapping

from inference.model import Model
from inference.progress import Assignment, Progress
from inference.source import GROUP, Source
from runtime import telemetry
from runtime.clock import Clock
from runtime.service import Health, Stage


class Report:
    """Told every second, on the event loop."""

    def __init__(
        self, health: Health, models: Mapping[str, Model], progress: Progress, source: Source, clock: Clock
    ) -> None:
        """`models` by topic."""
        self._health = health
        self._models = models
        self._progress = progress
        self._source = source
        self._clock = clock
        self._shown: set[str] = set()

    def tell(self) -> None:
        """Replace what was said before."""
        stages = {f"{a.topic}:{a.partition}": self._stage(a) for a in self._progress.assignments()}
        for gone in self._shown - stages.keys():
            self._health.drop_stage(gone)
        for name, stage in stages.items():
            self._health.stage(name, stage)
        self._shown = set(stages)
        paused = sum(stage.state == "paused" for stage in stages.values())
        telemetry.gauge("tidemill_paused_partitions").labels(GROUP).set(paused)
        halted = sorted(name for name, stage in stages.items() if stage.state == "halted")
        telemetry.gauge("tidemill_halted_partitions").labels(GROUP).set(len(halted))
        self._health.detail(halted=halted)
        for topic in self._models:
            mine = (stage for name, stage in stages.items() if name.rpartition(":")[0] == topic)
            lag = sum(stage.lag_records for stage in mine)
            telemetry.gauge("tidemill_lag_records").labels(GROUP, topic).set(lag)
        routed = all(model.route is not None and not model.away for model in self._models.values())
        self._health.set_ready(routed and self._source.joined)

    def _stage(self, assignment: Assignment) -> Stage:
        model = self._models[assignment.topic]
        lag = self._source.lag(assignment)
        oldest_ms = assignment.oldest_ms
        age_sec = max(0.0, (self._clock() - oldest_ms) / 1000) if lag and oldest_ms is not None else 0.0
        waiting = "waiting" if model.route is None else "running"
        state = "paused" if model.away else waiting
        return Stage(
            lag_records=lag,
            oldest_age_sec=round(age_sec, 3),
            state="halted" if assignment.halted else state,
            note=assignment.halted or model.away,
        )
