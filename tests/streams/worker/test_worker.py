"""The worker on a real broker: exact whatever dies, alarmed about what changed and about nothing else."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from compose.embedded.stack import Stack
from runtime.settings import Settings
from schemas.events import Alert, DriftEvidence, WindowMetrics
from schemas.spec import ModelSpec
from schemas.topics import OBSERVATIONS, OUTCOMES
from tests.streams.worker.batches import (
    EPOCH_MS,
    SPEC,
    Features,
    features,
    observations,
    outcomes,
    write_artifact,
    write_model,
)
from tests.streams.worker.worker import Events, Source, WorkerProcess, newest, worker_process

WINDOW_MS = 10_000
PARTS = OBSERVATIONS.partitions


class Bench:
    """One model of its own in a running infrastructure."""

    def __init__(self, settings: Settings, folder: Path, name: str) -> None:
        self.settings = msgspec.structs.replace(
            settings, models_dir=folder / "models", artifacts_dir=folder / "artifacts", http_port=0
        )
        self.spec: ModelSpec = write_model(self.settings.models_dir, SPEC.replace("drifty", name))
        self.rng = np.random.default_rng(7)
        write_artifact(self.settings.artifacts_dir, self.spec, features(self.rng, 5000))
        self.source = Source(self.settings)
        self.log = folder / "worker.log"

    def worker(self) -> WorkerProcess:
        return WorkerProcess(self.settings, self.log)


@pytest.fixture
def bench(infrastructure: Stack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    name = "m_" + str(abs(hash(request.node.name)))[:12]
    made = Bench(infrastructure.settings, tmp_path, name)
    yield made
    if made.log.exists():
        print(made.log.read_text()[-4000:])


def at(start_ms: int, rows: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Times of `rows` rows, one a millisecond."""
    return np.arange(rows, dtype=np.int64) + start_ms


def truths(rng: np.random.Generator, rows: Features, error: float) -> list[str]:
    """Labels that contradict the prediction in a share `error` of the rows."""
    right = rows.scores[:, 1] > 0.5
    return [str(label) for label in np.where(right ^ (rng.random(len(rows)) < error), "up", "down")]


def test_every_committed_row_is_counted_once_whatever_dies(bench: Bench) -> None:
    rows_per_batch, batches, expected, labelled, right = 200, 120, 0, 0, 0
    with worker_process(bench.settings, bench.log) as worker:
        metrics = Events(bench.settings, WindowMetrics, bench.spec.name)
        for number in range(batches):
            rows = features(bench.rng, rows_per_batch)
            when = at(EPOCH_MS + number * 1000, rows_per_batch)
            batch = observations(
                bench.spec, rows, first_offset=expected, at_ms=when, rejected=[3] if number % 10 == 0 else []
            )
            truth = truths(bench.rng, rows, 0.2)
            if number % 7 == 3:
                bench.source.abort(OBSERVATIONS.name, [batch], number % OBSERVATIONS.partitions)
                bench.source.abort(
                    OUTCOMES.name,
                    [outcomes(bench.spec, rows, truth, at_ms=when)],
                    number % OBSERVATIONS.partitions,
                )
                continue
            bench.source.commit(OBSERVATIONS.name, [batch], number % OBSERVATIONS.partitions)
            bench.source.commit(
                OUTCOMES.name,
                [outcomes(bench.spec, rows, truth, at_ms=when)],
                number % OBSERVATIONS.partitions,
            )
            expected += rows_per_batch
            labelled += rows_per_batch
            predicted = np.where(rows.scores[:, 1] > 0.5, "up", "down")
            right += int(np.sum(predicted == np.array(truth)))
            if number % 25 == 20:
                # It dies with work half done: some saves committed, one perhaps under way.
                seen = len(metrics.read())
                metrics.wait(lambda events, seen=seen: len(events) > seen)  # type: ignore[misc]
                worker.kill()
                worker.start()
        windows = metrics.wait(lambda events: _totals(events)[:2] == (expected, labelled), timeout_sec=90)
        assert _totals(windows) == (expected, labelled, right)
        # And it stays so: nothing was on its way to be counted again.
        assert worker.stop() == 0
        assert _totals(metrics.read()) == (expected, labelled, right)
        held = newest(windows)
        assert sum(window.rejected for window in held.values() if window.segment == "") == sum(
            1 for number in range(0, batches, 10) if number % 7 != 3
        )
        by_kind = sum(w.rows for w in held.values() if w.segment and w.role == "live")
        assert by_kind == expected - sum(window.rejected for window in held.values() if not window.segment)
        metrics.close()


def test_a_second_worker_takes_its_share_and_counts_nothing_twice(bench: Bench, tmp_path: Path) -> None:
    second = msgspec.structs.replace(bench.settings, slot=1)
    metrics = Events(bench.settings, WindowMetrics, bench.spec.name)
    expected = 0

    def write(batches: int) -> None:
        nonlocal expected
        for number in range(batches):
            rows = features(bench.rng, 100)
            batch = observations(bench.spec, rows, first_offset=expected, at_ms=at(EPOCH_MS + expected, 100))
            bench.source.commit(OBSERVATIONS.name, [batch], number % OBSERVATIONS.partitions)
            expected += 100

    with worker_process(bench.settings, bench.log) as first:
        write(20)
        metrics.wait(lambda events: _totals(events)[0] > 0)
        with worker_process(second, tmp_path / "second.log") as other:
            # It joins in the middle of the stream, and leaves in the middle.
            deadline = time.monotonic() + 60
            while not stages(other):
                write(1)
                assert time.monotonic() < deadline, (tmp_path / "second.log").read_text()[-2000:]
            write(20)
            metrics.wait(lambda events: _totals(events)[0] == expected)
            write(20)
            assert other.stop() == 0
        write(20)
        metrics.wait(lambda events: _totals(events)[0] == expected)
        assert first.stop() == 0
        assert _totals(metrics.read())[0] == expected
    metrics.close()


def stages(worker: WorkerProcess) -> dict[str, Any]:
    """What the worker says it works on; nothing before it is up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{worker.http_port}/health", timeout=2) as answer:
            found: dict[str, Any] = json.load(answer)["stages"]
            return found
    except OSError:
        return {}


def _totals(events: list[WindowMetrics]) -> tuple[int, int, int]:
    held = [window for window in newest(events).values() if window.segment == ""]
    return sum(w.rows for w in held), sum(w.labelled for w in held), sum(w.correct for w in held)


def test_a_revised_label_takes_back_the_one_before(bench: Bench) -> None:
    rows = features(bench.rng, 100)
    when = at(EPOCH_MS, 100)
    first = truths(bench.rng, rows, 0.0)
    second = ["down" if truth == "up" else "up" for truth in first[:30]] + first[30:]
    with worker_process(bench.settings, bench.log) as worker:
        metrics = Events(bench.settings, WindowMetrics, bench.spec.name)
        bench.source.commit(OUTCOMES.name, [outcomes(bench.spec, rows, first, at_ms=when)])
        metrics.wait(lambda events: _totals(events) == (0, 100, 100))
        revised = outcomes(bench.spec, rows, second, at_ms=when, revision=1, previous=first)
        bench.source.commit(OUTCOMES.name, [revised])
        events = metrics.wait(lambda events: _totals(events) == (0, 100, 70))
        (window,) = [window for window in newest(events).values() if window.segment == ""]
        given = rows.scores[np.arange(100), [bench.spec.classes.index(truth) for truth in second]]
        assert window.accuracy == pytest.approx(0.7)
        assert window.log_loss == pytest.approx(float(np.mean(-np.log(given))), rel=1e-5)
        assert worker.stop() == 0
        metrics.close()


def test_a_shift_of_one_input_is_alarmed_about_once_and_nothing_else_is(bench: Bench) -> None:
    with worker_process(bench.settings, bench.log) as worker:
        alerts = Events(bench.settings, Alert, bench.spec.name)
        drift = Events(bench.settings, DriftEvidence, bench.spec.name)
        for window in range(12):
            rows = features(bench.rng, 600, shift=0.0 if window < 6 else 1.5)
            when = at(EPOCH_MS + window * WINDOW_MS, 600)
            for part in range(PARTS):
                piece = slice(part * 600 // PARTS, (part + 1) * 600 // PARTS)
                some = Features(rows.numbers[piece], rows.texts[piece], rows.scores[piece])
                batch = observations(bench.spec, some, first_offset=window * 600, at_ms=when[piece])
                bench.source.commit(OBSERVATIONS.name, [batch], part)
            # One window after another, as time passes: partitions are then read side by side.
            drift.wait(lambda events, n=window: len(events) >= n * 4 - 4)  # type: ignore[misc]
        drift.wait(lambda events: sum(event.drifted for event in events) >= 3)
        found = alerts.wait(lambda events: len(events) >= 1)
        assert worker.stop() == 0
        found = alerts.read()
        assert [(alert.kind, alert.subject, alert.version) for alert in found] == [
            ("input_drift", "a", "1.0")
        ]
        quiet = [event for event in drift.all if event.subject != "a"]
        assert quiet and not any(event.drifted for event in quiet)
        alerts.close()
        drift.close()


def test_a_rise_of_the_error_is_alarmed_about_and_a_fall_is_not(bench: Bench) -> None:
    with worker_process(bench.settings, bench.log) as worker:
        alerts = Events(bench.settings, Alert, bench.spec.name)
        drift = Events(bench.settings, DriftEvidence, bench.spec.name)
        metrics = Events(bench.settings, WindowMetrics, bench.spec.name)
        for number, error in enumerate([0.3] * 10 + [0.1] * 10 + [0.45] * 5):
            rows = features(bench.rng, 200)
            when = at(EPOCH_MS + number * WINDOW_MS, 200)
            bench.source.commit(
                OUTCOMES.name, [outcomes(bench.spec, rows, truths(bench.rng, rows, error), at_ms=when)]
            )
        alerts.wait(lambda events: len(events) >= 1)
        metrics.wait(lambda events: _totals(events)[1] == 25 * 200)
        assert worker.stop() == 0
        (alert,) = alerts.read()
        assert (alert.kind, alert.severity, alert.subject) == ("loss_drift", "severe", "loss")
        assert alert.evidence["before"] < 0.2 < alert.evidence["after"]
        directions = [event.drifted for event in drift.read() if event.test == "adwin"]
        assert False in directions and True in directions
        for events in (alerts, drift, metrics):
            events.close()
