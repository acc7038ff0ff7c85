"""The worker on a real broker: exact whatever dies, alarmed about what changed and about nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from compose.embedded.stack import Stack
from schemas.events import WindowMetrics
from schemas.topics import OBSERVATIONS, OUTCOMES
from tests.services import Service
from tests.streams.worker.batches import (
    EPOCH_MS,
    Features,
    features,
    observations,
    outcomes,
)
from tests.streams.worker.worker import Bench, newest, worker_process
from tests.waiting import until

WINDOW_MS = 10_000
PARTS = OBSERVATIONS.partitions


@pytest.fixture
def bench(infrastructure: Stack, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(infrastructure.settings, tmp_path, f"m_{uuid.uuid4().hex[:12]}")
    yield made
    made.close()
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
        metrics = bench.metrics
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
            if number in (20, 70):
                # It dies with work half done: some saves committed, one perhaps under way.
                seen = len(metrics.read())
                metrics.wait(partial(longer, seen), "a save")
                worker.restart()
        windows = metrics.wait(lambda events: _totals(events)[:2] == (expected, labelled), "every row")
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


def longer(count: int, events: Sequence[object]) -> bool:
    return len(events) > count


def test_a_second_worker_takes_its_share_and_counts_nothing_twice(bench: Bench, tmp_path: Path) -> None:
    second = msgspec.structs.replace(bench.settings, slot=1)
    expected = 0

    def write(batches: int) -> None:
        nonlocal expected
        for number in range(batches):
            rows = features(bench.rng, 100)
            batch = observations(bench.spec, rows, first_offset=expected, at_ms=at(EPOCH_MS + expected, 100))
            bench.source.commit(OBSERVATIONS.name, [batch], number % OBSERVATIONS.partitions)
            expected += 100

    def joined(other: Service) -> bool:
        write(1)
        return bool(other.stages())

    with worker_process(bench.settings, bench.log) as first:
        write(20)
        bench.metrics.wait(lambda events: _totals(events)[0] > 0, "the first rows")
        with worker_process(second, tmp_path / "second.log") as other:
            # It joins in the middle of the stream, and leaves in the middle.
            until(lambda: joined(other), "the second has partitions")
            write(20)
            bench.metrics.wait(lambda events: _totals(events)[0] == expected, "every row")
            write(20)
            assert other.stop() == 0
        write(20)
        bench.metrics.wait(lambda events: _totals(events)[0] == expected, "every row")
        assert first.stop() == 0
        assert _totals(bench.metrics.read())[0] == expected


def _totals(events: list[WindowMetrics]) -> tuple[int, int, int]:
    held = [window for window in newest(events).values() if window.segment == ""]
    return sum(w.rows for w in held), sum(w.labelled for w in held), sum(w.correct for w in held)


REVISED, SHIFTED, ERRING = "m_revised", "m_shifted", "m_erring"
CHANGED = 30
"""Labels that are revised."""


@pytest.fixture(scope="module")
def seen(infrastructure: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Bench]]:
    """What one worker made of three models, each with a story of its own: when it has ended, so that nothing more can come."""
    folder = tmp_path_factory.mktemp("stories")
    stories = {REVISED: labels_are_revised, SHIFTED: an_input_shifts, ERRING: the_error_falls_and_rises}
    benches = {name: Bench(infrastructure.settings, folder, name) for name in stories}
    try:
        with worker_process(benches[REVISED].settings, folder / "worker.log") as worker:
            for name, told in stories.items():
                told(benches[name])
            assert worker.stop() == 0
        for bench in benches.values():
            for events in (bench.metrics, bench.drift, bench.alerts):
                events.read()
        yield benches
    finally:
        for bench in benches.values():
            bench.close()
        print((folder / "worker.log").read_text()[-4000:])


def labels_are_revised(bench: Bench) -> None:
    """100 right labels, then the opposite of the first ones."""
    rows = bench.written = features(bench.rng, 100)
    when = at(EPOCH_MS, 100)
    first = truths(bench.rng, rows, 0.0)
    second = ["down" if truth == "up" else "up" for truth in first[:CHANGED]] + first[CHANGED:]
    bench.source.commit(OUTCOMES.name, [outcomes(bench.spec, rows, first, at_ms=when)])
    bench.metrics.wait(lambda events: _totals(events) == (0, 100, 100), "the labels")
    revised = outcomes(bench.spec, rows, second, at_ms=when, revision=1, previous=first)
    bench.source.commit(OUTCOMES.name, [revised])
    bench.metrics.wait(lambda events: _totals(events) == (0, 100, 100 - CHANGED), "their revision")


def an_input_shifts(bench: Bench) -> None:
    """Twelve windows; from the seventh on, feature `a` is another."""
    for window in range(12):
        rows = features(bench.rng, 600, shift=0.0 if window < 6 else 1.5)
        when = at(EPOCH_MS + window * WINDOW_MS, 600)
        for part in range(PARTS):
            piece = slice(part * 600 // PARTS, (part + 1) * 600 // PARTS)
            some = Features(rows.numbers[piece], rows.texts[piece], rows.scores[piece])
            batch = observations(bench.spec, some, first_offset=window * 600, at_ms=when[piece])
            bench.source.commit(OBSERVATIONS.name, [batch], part)
        # One window after another, as time passes: partitions are then read side by side.
        bench.drift.wait(partial(longer, window * 4 - 5), "the windows before")
    bench.drift.wait(lambda events: sum(event.drifted for event in events) >= 3, "drift in three windows")
    bench.alerts.wait(lambda events: len(events) >= 1, "an alert")


def the_error_falls_and_rises(bench: Bench) -> None:
    """From 0.3 to 0.1, and then to 0.45."""
    for number, error in enumerate([0.3] * 10 + [0.1] * 10 + [0.45] * 5):
        rows = features(bench.rng, 200)
        when = at(EPOCH_MS + number * WINDOW_MS, 200)
        bench.source.commit(
            OUTCOMES.name, [outcomes(bench.spec, rows, truths(bench.rng, rows, error), at_ms=when)]
        )
    bench.alerts.wait(lambda events: len(events) >= 1, "an alert")
    bench.metrics.wait(lambda events: _totals(events)[1] == 25 * 200, "every label")


def test_a_revised_label_takes_back_the_one_before(seen: dict[str, Bench]) -> None:
    (window,) = [window for window in newest(seen[REVISED].metrics.all).values() if window.segment == ""]
    right = seen[REVISED].written.scores.max(axis=1)
    given = np.where(np.arange(100) < CHANGED, 1 - right, right)
    assert (window.rows, window.labelled, window.correct) == (0, 100, 100 - CHANGED)
    assert window.accuracy == pytest.approx(0.7)
    assert window.log_loss == pytest.approx(float(np.mean(-np.log(given))), rel=1e-5)


def test_a_shift_of_one_input_is_alarmed_about_once_and_nothing_else_is(seen: dict[str, Bench]) -> None:
    assert [(alert.kind, alert.subject, alert.version) for alert in seen[SHIFTED].alerts.all] == [
        ("input_drift", "a", "1.0")
    ]
    quiet = [event for event in seen[SHIFTED].drift.all if event.subject != "a"]
    assert quiet and not any(event.drifted for event in quiet)


def test_a_rise_of_the_error_is_alarmed_about_and_a_fall_is_not(seen: dict[str, Bench]) -> None:
    (alert,) = seen[ERRING].alerts.all
    assert (alert.kind, alert.severity, alert.subject) == ("loss_drift", "severe", "loss")
    assert alert.evidence["before"] < 0.2 < alert.evidence["after"]
    directions = [event.drifted for event in seen[ERRING].drift.all if event.test == "adwin"]
    assert False in directions and True in directions
