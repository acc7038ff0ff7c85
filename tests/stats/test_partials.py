"""Sums over any split of a stream are the same, equal a plain recomputation, and follow revised labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stats.partials import Sums, WindowKey, add_all, observation_sums, outcome_sums
from tests.streams.worker.batches import EPOCH_MS, features, observations, outcomes, spec_of

SPEC = spec_of()
ROWS = 240


def observed(seed: int = 0) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    when = EPOCH_MS + rng.integers(0, 40_000, ROWS)
    return observations(SPEC, features(rng, ROWS), first_offset=0, at_ms=when, rejected=[1, 5, 8])


def labelled(seed: int = 0) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    rows = features(rng, ROWS)
    truth = [str(value) for value in rng.choice(["up", "down"], ROWS)]
    return outcomes(SPEC, rows, truth, at_ms=EPOCH_MS + rng.integers(0, 40_000, ROWS))


def plain(sums: dict[WindowKey, Sums]) -> dict[WindowKey, tuple[object, ...]]:
    return {
        key: (of.rows, of.rejected, of.labelled, of.correct, round(of.loss_sum, 6), round(of.brier_sum, 6),
              of.confusion.tolist(), of.latency_ms.tolist())
        for key, of in sums.items()
    }  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, ROWS), max_size=5))
def test_any_split_gives_the_same_sums(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), ROWS]
    ways: tuple[tuple[pa.RecordBatch, Callable[[pa.RecordBatch], dict[WindowKey, Sums]]], ...] = (
        (observed(), lambda part: observation_sums(part, 10_000)),
        (labelled(), lambda part: outcome_sums(part, 10_000, SPEC.classes)),
    )
    for batch, count in ways:
        merged: dict[WindowKey, Sums] = {}
        for low, high in pairwise(edges):
            add_all(merged, count(batch.slice(low, high - low)))
        assert plain(merged) == plain(count(batch))


def test_sums_equal_a_plain_recomputation() -> None:
    expected: dict[WindowKey, int] = defaultdict(int)
    rejected: dict[WindowKey, int] = defaultdict(int)
    batch = observed()
    for row in batch.to_pylist():
        start = int(row["requested_at"].timestamp() * 1000) // 10_000 * 10_000
        for segment in ["", *row["segments"]]:
            key = WindowKey(start, row["role"], row["arm"], row["version"], segment)
            expected[key] += 1
            rejected[key] += row["status"] == "rejected"
    found = observation_sums(batch, 10_000)
    assert {key: of.rows for key, of in found.items()} == expected
    assert {key: of.rejected for key, of in found.items()} == rejected
    assert all(of.latency_ms.sum() == of.rows - of.rejected for of in found.values())


def test_a_revision_leaves_the_sums_of_the_newest_label_alone() -> None:
    rng = np.random.default_rng(4)
    rows = features(rng, ROWS)
    when = EPOCH_MS + rng.integers(0, 40_000, ROWS)
    first, second, third = ([str(v) for v in rng.choice(["up", "down"], ROWS)] for _ in range(3))
    history = [
        outcomes(SPEC, rows, first, at_ms=when),
        outcomes(SPEC, rows, second, at_ms=when, revision=1, previous=first),
        outcomes(SPEC, rows, third, at_ms=when, revision=2, previous=second),
    ]
    merged = outcome_sums(pa.concat_batches(history), 10_000, SPEC.classes)
    once = outcome_sums(outcomes(SPEC, rows, third, at_ms=when), 10_000, SPEC.classes)
    assert merged.keys() == once.keys()
    for key, of in once.items():
        assert (merged[key].labelled, merged[key].correct) == (of.labelled, of.correct)
        assert merged[key].confusion.tolist() == of.confusion.tolist()
        assert merged[key].loss_sum == pytest.approx(of.loss_sum, abs=1e-4)
        assert merged[key].brier_sum == pytest.approx(of.brier_sum, abs=1e-4)


def test_an_unknown_truth_counts_everywhere_but_in_the_confusion_matrix() -> None:
    batch = labelled()
    truth = pa.array(["sideways"] * ROWS)
    batch = batch.set_column(batch.schema.get_field_index("truth"), batch.schema.field("truth"), truth)
    found = outcome_sums(batch, 100_000_000, SPEC.classes)
    total = next(of for key, of in found.items() if key.segment == "")
    assert total.labelled == ROWS and total.confusion.sum() == 0
