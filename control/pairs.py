"""Paired losses: what two versions lost on the same labelled rows, taken from one batch of outcomes.

The labels stage emits all arms of a prediction in one batch, so a pair is never split over batches.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.arrow import OUTCOMES, part_of
from schemas.spec import ModelSpec

READ: Final = part_of(
    OUTCOMES,
    ["prediction_id", "model", "role", "version", "revision", "correct", "loss", "requested_at", "joined_at"],
)
"""What a batch of outcomes must have."""
LOG_LOSS_BOUND = 4.0
"""A difference of log losses beyond this counts as this: the test needs a bound."""


class FirstLabels(NamedTuple):
    """What one outcome batch says of one model, revisions left out (a pair counts once)."""

    live_rows: int
    joined_through_ms: int
    table: pa.Table
    """Its first labels."""


def first_labels(batch: pa.RecordBatch, model: str) -> FirstLabels:
    """The first labels of `model` in `batch`."""
    table = pa.Table.from_batches([batch])
    table = table.filter(pc.and_(pc.equal(table["model"], model), pc.equal(table["revision"], 0)))
    joined = pc.max(table["joined_at"].cast(pa.int64())).as_py() or 0
    live = pc.sum(pc.equal(table["role"], "live")).as_py() or 0
    return FirstLabels(live, joined, table)


def differences(
    spec: ModelSpec, table: pa.Table, contender: Versions, reference: Versions
) -> NDArray[np.float64]:
    """loss(contender) - loss(reference) in [-1, 1] for each prediction that both answered, in order of request: shape (n,)."""
    left, right = _rows_of(table, contender), _rows_of(table, reference)
    if not left.num_rows or not right.num_rows:
        return np.empty(0)
    joined = left.join(right, "prediction_id", join_type="inner", right_suffix="_reference").sort_by(
        [("requested_at", "ascending"), ("prediction_id", "ascending")]
    )
    if spec.rollout.metric == "accuracy":
        return _column(joined, "correct_reference") - _column(joined, "correct")
    loss, other = _column(joined, "loss"), _column(joined, "loss_reference")
    if spec.rollout.metric == "log_loss":
        return np.clip((loss - other) / LOG_LOSS_BOUND, -1.0, 1.0)
    # A squared error has no bound of its own; its difference relative to the sum has.
    total = loss + other
    relative: NDArray[np.float64] = np.divide(loss - other, total, out=np.zeros_like(total), where=total > 0)
    return relative


class Versions(NamedTuple):
    """Whose answers: a role and one version, or all versions of a major (`2.*`)."""

    role: str
    version: str


def _rows_of(table: pa.Table, who: Versions) -> pa.Table:
    if who.version.endswith(".*"):
        fits = pc.starts_with(table["version"], who.version[:-1])
    else:
        fits = pc.equal(table["version"], who.version)
    rows = table.filter(pc.and_(pc.equal(table["role"], who.role), fits))
    columns = ["prediction_id", "correct", "loss"]
    if who.role == "live":
        return rows.select([*columns, "requested_at"]).combine_chunks()
    # Several shadow arms may hold one version; its answer is the same in each.
    kept = rows.select(columns).combine_chunks()
    _, first = np.unique(np.array(kept["prediction_id"].to_pylist(), dtype=object), return_index=True)
    return kept.take(pa.array(np.sort(first)))


def _column(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(table[name].to_numpy(), dtype=np.float64)
