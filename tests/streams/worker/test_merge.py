"""Merging: windows close when labels are mature, evidence needs two blocks, and a restart between any two saves changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from runtime.settings import Settings
from schemas.arrow import encode_batch
from schemas.events import Alert, DriftEvidence, LossPartial, MetricPartial, WindowMetrics
from schemas.spec import ModelSpec
from schemas.topics import ALERTS, DRIFT, METRICS, OBSERVATIONS
from streams.worker.losses import Losses
from streams.worker.measure import Measure
from streams.worker.merge import Merge
from streams.worker.models import Models
from streams.worker.windows import Windows
from tests.streams.worker.batches import (
    EPOCH_MS,
    SPEC,
    features,
    observations,
    spec_of,
    write_artifact,
    write_model,
)

NOW_MS = EPOCH_MS + 365 * 86_400_000
DAY_MS = 86_400_000


def partial(start_ms: int, **values: Any) -> MetricPartial:
    return MetricPartial(
        model="drifty", source="observations:0", through_offset=1, window_start_ms=start_ms, window_sec=10,
        role="live", arm="champion", version="1.0", **values,
    )  # fmt: skip


def test_a_label_after_its_window_closed_is_late_and_changes_nothing() -> None:
    windows, spec = Windows(), spec_of()
    assert windows.add(spec, partial(EPOCH_MS, rows=5), NOW_MS)
    assert windows.add(spec, partial(EPOCH_MS, labelled=2, correct=1, confusion=[1, 1, 0, 0]), NOW_MS)
    (metrics,), _ = windows.drain(1, NOW_MS)
    assert (metrics.rows, metrics.labelled, metrics.accuracy) == (5, 2, 0.5)
    assert windows.add(spec, partial(EPOCH_MS + DAY_MS + 20_000, rows=1), NOW_MS)
    _, entries = windows.drain(2, NOW_MS)
    assert list(entries.values()).count(None) == 1 and len(windows) == 1
    assert not windows.add(spec, partial(EPOCH_MS, labelled=1), NOW_MS)


def test_a_clock_that_runs_ahead_closes_nobodys_windows() -> None:
    windows, spec = Windows(), spec_of()
    now_ms = EPOCH_MS + 60_000
    windows.add(spec, partial(EPOCH_MS, rows=5), now_ms)
    windows.add(spec, partial(EPOCH_MS + 100 * DAY_MS, rows=1), now_ms)
    assert windows.add(spec, partial(EPOCH_MS, labelled=1), now_ms)


def test_windows_are_bounded_and_one_let_go_does_not_begin_anew() -> None:
    windows, spec = Windows(max_windows=20), spec_of()
    for number in range(30):
        windows.add(spec, partial(EPOCH_MS + number * 10_000, rows=1), NOW_MS)
    windows.drain(1, NOW_MS)
    assert len(windows) <= 20
    again = Windows(max_windows=20, closed_through_ms=windows.closed_through_ms)
    assert not again.add(spec, partial(EPOCH_MS, labelled=1), NOW_MS)


class Loop:
    """Measure and merge without Kafka; saves go into a dictionary as they go into `state`."""

    def __init__(self, tmp_path: Path) -> None:
        settings = Settings(models_dir=tmp_path / "models", artifacts_dir=tmp_path / "artifacts")
        self.spec: ModelSpec = write_model(settings.models_dir, SPEC)
        self.rng = np.random.default_rng(11)
        write_artifact(settings.artifacts_dir, self.spec, features(self.rng, 5000))
        self.models = Models(settings)
        self.measure = Measure(self.models, OBSERVATIONS.name, 0)
        self.out: dict[str, list[bytes]] = {METRICS.name: [], DRIFT.name: [], ALERTS.name: []}
        self._own = b""
        self._entries: dict[str, bytes] = {}
        self._offset = 0
        self.merge = self._new()

    def observe(self, window: int, rows: int, shift: float) -> None:
        made = features(self.rng, rows, shift)
        when = np.full(rows, EPOCH_MS + window * 10_000)
        self.measure.apply(encode_batch(observations(self.spec, made, first_offset=0, at_ms=when)))
        for record in self.measure.drain(1).records:
            self._offset += 1
            self.merge.apply(record.value)

    def save(self) -> None:
        drained = self.merge.drain(self._offset)
        for record in drained.records:
            self.out[record.topic].append(record.value)
        self._own = drained.own
        for entry, value in drained.entries.items():
            if value is None:
                self._entries.pop(entry, None)
            else:
                self._entries[entry] = value

    def restart(self) -> None:
        self.merge = self._new()
        self.merge.restore(self._own, dict(self._entries))

    def _new(self) -> Merge:
        return Merge(self.models, lambda: NOW_MS, 0)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_shift_is_alarmed_about_in_its_second_block_and_again_only_after_a_calm(
    tmp_path: Path, restarts: bool
) -> None:
    loop = Loop(tmp_path)
    for window, shift in enumerate([0, 0, 2, 0, 2, 2, 2, 2, 0, 0, 0, 2, 2, 2]):
        loop.observe(window, 500, shift)
        loop.save()
        if restarts:
            loop.restart()
    alerts = [msgspec.json.decode(value, type=Alert) for value in loop.out[ALERTS.name]]
    evidence = [msgspec.json.decode(value, type=DriftEvidence) for value in loop.out[DRIFT.name]]
    assert [(alert.kind, alert.subject) for alert in alerts] == [("input_drift", "a")] * 2
    # The first single block (window 2) is no episode; the pairs (4, 5) and (11, 12) are.
    assert [(alert.evidence["window_start_ms"] - EPOCH_MS) // 10_000 for alert in alerts] == [5, 12]
    assert {event.subject for event in evidence} == {"a", "b", "kind", "score"}
    assert len({event.event_id for event in evidence}) == len(evidence)
    windows = [msgspec.json.decode(value, type=WindowMetrics) for value in loop.out[METRICS.name]]
    assert sum(window.rows for window in windows if window.segment == "") == 14 * 500


def errors(rng: np.random.Generator, level: float, version: str, newest_ms: int) -> LossPartial:
    values = (rng.random(500) < level).astype(float).tolist()
    return LossPartial(
        model="drifty",
        source="outcomes:0",
        through_offset=1,
        version=version,
        errors=values,
        newest_ms=newest_ms,
    )


def test_a_new_major_begins_with_an_empty_window_and_an_update_does_not() -> None:
    for after, expected in (("1.7", 1), ("2.0", 0)):
        rng, losses, found = np.random.default_rng(5), Losses(), 0
        for number in range(8):
            version, level = ("1.3", 0.1) if number < 4 else (after, 0.4)
            losses.add(spec_of(), errors(rng, level, version, number))
            _, alerts = losses.drain(NOW_MS)
            found += len(alerts)
        assert found == expected


def test_losses_of_one_save_are_taken_in_the_order_of_their_labels() -> None:
    rng = np.random.default_rng(6)
    batches = [errors(rng, 0.1 if number < 4 else 0.4, "1.0", number) for number in range(8)]
    losses = Losses()
    for batch in reversed(batches):
        losses.add(spec_of(), batch)
    _, (alert,) = losses.drain(NOW_MS)
    assert alert.kind == "loss_drift"
