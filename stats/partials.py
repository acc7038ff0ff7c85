"""A batch's rows, summed by (window, role, arm, version, segment). Sums merge by addition in any order and any split.

A revised label takes back what the revision before had added (`previous_truth`, `previous_loss`, `previous_brier`), so that
a prediction counts once, with its newest label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.arrow import only_text
from stats.histogram import LATENCY_EDGES_MS, Counts, bin_of

LATENCY_BINS: Final = len(LATENCY_EDGES_MS) + 1


class WindowKey(NamedTuple):
    """What sums are kept apart by, within one model."""

    window_start_ms: int
    role: str
    arm: str
    version: str
    segment: str


@dataclass
class Sums:
    """The sums of one key."""

    rows: int = 0
    rejected: int = 0
    labelled: int = 0
    correct: int = 0
    loss_sum: float = 0.0
    brier_sum: float = 0.0
    confusion: Counts = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Row-major [truth][label], shape (classes²,); empty if no label was counted."""
    latency_ms: Counts = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Shape (LATENCY_BINS,); empty if no row was counted."""

    def add(self, other: Sums) -> None:
        """Add what another part of the stream has seen."""
        self.rows += other.rows
        self.rejected += other.rejected
        self.labelled += other.labelled
        self.correct += other.correct
        self.loss_sum += other.loss_sum
        self.brier_sum += other.brier_sum
        self.confusion = _added(self.confusion, other.confusion)
        self.latency_ms = _added(self.latency_ms, other.latency_ms)


def add_all(into: dict[WindowKey, Sums], found: dict[WindowKey, Sums]) -> None:
    """Merge `found` into `into`."""
    for key, sums in found.items():
        if key in into:
            into[key].add(sums)
        else:
            into[key] = sums


def observation_sums(batch: pa.RecordBatch, window_ms: int) -> dict[WindowKey, Sums]:
    """Sums of a batch of `schemas.arrow.OBSERVATIONS` of one model: rows, rejections, time from request to scores.

    A redriven row counts as a row of its request's window, but not in the time: it is as long as the operator was.
    """
    groups = _groups(batch, window_ms)
    take = groups.row_of
    answered = _is(batch["status"], "answered")[take]
    first = answered & (batch["attempt"].to_numpy() == 0)[take]
    latency = (_ms(batch["observed_at"]) - _ms(batch["requested_at"]))[take]
    rows = np.bincount(groups.group_of, minlength=len(groups.keys))
    rejected = np.bincount(groups.group_of[~answered], minlength=len(groups.keys))
    latencies = _tables(
        groups.group_of[first], bin_of(latency[first], LATENCY_EDGES_MS), len(groups.keys), LATENCY_BINS
    )
    return {
        key: Sums(rows=int(rows[i]), rejected=int(rejected[i]), latency_ms=latencies[i])
        for i, key in enumerate(groups.keys)
    }


def outcome_sums(batch: pa.RecordBatch, window_ms: int, classes: Sequence[str]) -> dict[WindowKey, Sums]:
    """Sums of a batch of `schemas.arrow.OUTCOMES` of one model; `classes` is empty for a regression.

    `labelled` counts predictions, so a revision adds nothing to it. A truth that is none of `classes` counts everywhere but in the
    confusion matrix.
    """
    groups = _groups(batch, window_ms)
    take, index, n = groups.row_of, groups.group_of, len(groups.keys)
    revised = (batch["revision"].to_numpy() > 0)[take]
    truth, previous, label = (
        _class_index(batch[name], classes)[take] for name in ("truth", "previous_truth", "label")
    )
    correct = batch["correct"].to_numpy().astype(np.int64)[take]
    if classes:
        was_correct = pc.equal(batch["previous_truth"], batch["label"]).to_numpy(zero_copy_only=False)[take]
        correct = correct - (revised & was_correct)
    loss = _change(batch, "loss", "previous_loss")[take]
    brier = _change(batch, "brier", "previous_brier")[take]

    width = len(classes)
    known = (truth >= 0) & (label >= 0)
    confusion = _tables(index[known], (truth * width + label)[known], n, width * width)
    known = revised & (previous >= 0) & (label >= 0)
    confusion -= _tables(index[known], (previous * width + label)[known], n, width * width)

    labelled = np.bincount(index[~revised], minlength=n)
    corrects = np.bincount(index, weights=correct, minlength=n)
    losses = np.bincount(index, weights=loss, minlength=n)
    briers = np.bincount(index, weights=brier, minlength=n)
    return {
        key: Sums(
            labelled=int(labelled[i]),
            correct=int(corrects[i]),
            loss_sum=float(losses[i]),
            brier_sum=float(briers[i]),
            confusion=confusion[i],
        )
        for i, key in enumerate(groups.keys)
    }


class _Groups(NamedTuple):
    keys: list[WindowKey]
    row_of: NDArray[np.int64]
    """Row of the batch of each (row, segment) pair; every row comes once without a segment."""
    group_of: NDArray[np.int64]
    """Position in `keys` of each pair."""


def _groups(batch: pa.RecordBatch, window_ms: int) -> _Groups:
    rows, segments = _by_segment(batch["segments"])
    windows = _ms(batch["requested_at"]) // window_ms * window_ms
    columns = [_codes_of_numbers(windows), *(_codes(batch[name]) for name in ("role", "arm", "version"))]
    columns = [(codes[rows], values) for codes, values in columns] + [_codes(segments)]

    combined = np.zeros(len(rows), dtype=np.int64)
    for codes, values in columns:
        combined = combined * max(len(values), 1) + codes
    group_of, found = _codes_of_numbers(combined)
    keys = []
    for code in found:
        parts: list[Any] = []
        for _, values in reversed(columns):
            code, position = divmod(code, max(len(values), 1))
            parts.append(values[position])
        keys.append(WindowKey(*reversed(parts)))
    return _Groups(keys, rows, group_of)


def _codes(column: pa.StringArray) -> tuple[NDArray[np.int64], list[Any]]:
    """The column as positions in the list of its different values, in the order in which they come."""
    only = only_text(column)
    return _encoded(column) if only is None else (np.zeros(len(column), np.int64), [only])


def _codes_of_numbers(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Any]]:
    """The same of integers."""
    if len(values) and (values == values[0]).all():
        return np.zeros(len(values), np.int64), [int(values[0])]
    return _encoded(pa.array(values))


def _encoded(column: pa.Array) -> tuple[NDArray[np.int64], list[Any]]:
    encoded = column.dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _is(column: pa.StringArray, text: str) -> NDArray[np.bool_]:
    """Which rows hold `text`."""
    only = only_text(column)
    if only is not None:
        return np.full(len(column), only == text)
    return np.asarray(pc.equal(column, text).to_numpy(zero_copy_only=False))


def _by_segment(segments: pa.ListArray) -> tuple[NDArray[np.int64], pa.Array]:
    """(row, segment) pairs: each row with "", then each row with each of its segments."""
    every = np.arange(len(segments), dtype=np.int64)
    parents = pc.list_parent_indices(segments).to_numpy(zero_copy_only=False).astype(np.int64)
    return (
        np.concatenate([every, parents]),
        pa.concat_arrays([pa.repeat(pa.scalar(""), len(every)), pc.list_flatten(segments)]),
    )


def _ms(column: pa.Array) -> NDArray[np.int64]:
    return np.asarray(column.cast(pa.int64()).to_numpy())


def _class_index(column: pa.Array, classes: Sequence[str]) -> NDArray[np.int64]:
    found = pc.index_in(column, value_set=pa.array(classes, pa.string()))
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _change(batch: pa.RecordBatch, name: str, previous: str) -> NDArray[np.float64]:
    return np.asarray(batch[name].to_numpy(), dtype=np.float64) - np.asarray(
        batch[previous].to_numpy(), dtype=np.float64
    )


def _tables(group: NDArray[np.int64], column: NDArray[np.int64], groups: int, width: int) -> Counts:
    """Counts of (group, column) pairs, shape (groups, width)."""
    flat = np.bincount(group * width + column, minlength=groups * width)
    return flat.reshape(groups, width).astype(np.int64)


def _added(a: Counts, b: Counts) -> Counts:
    """Elementwise sum, an empty one counting as zeros."""
    if len(a) == 0 or len(b) == 0:
        return a + 0 if len(b) == 0 else b + 0
    return a + b
