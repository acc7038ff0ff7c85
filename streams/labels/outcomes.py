"""Outcome batches: each accepted label times the arms of its prediction, with losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.arrow import OUTCOMES, encode_batch
from schemas.identity import name_bytes
from schemas.spec import ModelSpec
from schemas.topics import OBSERVATION_BYTES
from streams.labels.losses import Losses, classification, regression
from streams.labels.revisions import Accepted

Indices = NDArray[np.int64]
RECORD_LIMIT_BYTES: Final = OBSERVATION_BYTES - 64 * 1024
"""Leaves room for key, headers and framing in what the topic takes."""


def outcome_batch(
    accepted: Sequence[Accepted],
    predictions: pa.Table,
    spec: ModelSpec,
    topic_id: UUID,
    joined_ms: int,
) -> pa.RecordBatch:
    """Outcomes in order of `accepted`, one row an arm.

    `predictions` has the arms of a prediction side by side, holds every accepted prediction, and all its scores have the
    spec's width. `topic_id` is the feedback topic's.
    """
    which, rows = _pairs([each.prediction_id for each in accepted], predictions["id"])
    arms = predictions.take(pa.array(rows))
    scores = _scores(arms["scores"], spec)
    truth = _repeat([each.label.truth for each in accepted], which, pa.string())
    truth_value = _repeat([each.label.truth_value for each in accepted], which, pa.float64())
    now = _losses(scores, truth, truth_value, spec)
    revised = np.array([each.previous is not None for each in accepted], dtype=bool)[which]
    previous_truth, before = _previous(accepted, which, revised, scores, spec)
    correct = pc.and_(pc.equal(arms["label"], truth), pc.not_equal(truth, "")).cast(pa.uint8())
    feedback_ids = _repeat([each.label.feedback_id for each in accepted], which, pa.string())
    revisions = _repeat([each.revision for each in accepted], which, pa.uint32())
    ids = [
        name_bytes("outcome", *named)
        for named in zip(
            arms["id"].to_pylist(),
            arms["arm"].to_pylist(),
            feedback_ids.to_pylist(),
            revisions.to_pylist(),
            strict=True,
        )
    ]
    columns: Mapping[str, Any] = {
        "outcome_id": pa.array(ids, pa.binary(16)),
        "prediction_id": arms["prediction_id_bytes"],
        "feedback_id": feedback_ids,
        "revision": revisions,
        "truth": truth,
        "truth_value": truth_value,
        "correct": correct,
        "loss": now.loss,
        "brier": now.brier,
        "previous_truth": previous_truth,
        "previous_loss": np.where(revised, before.loss, 0.0),
        "previous_brier": np.where(revised, before.brier, 0.0),
        "labeled_at": _repeat([each.label.at_ms for each in accepted], which, pa.int64()),
        "joined_at": np.full(len(rows), joined_ms, dtype=np.int64),
        "feedback_topic_id": pa.array([topic_id.bytes] * len(rows), pa.binary(16)),
        "feedback_partition": _repeat([e.label.received.partition for e in accepted], which, pa.int32()),
        "feedback_offset": _repeat([e.label.received.offset for e in accepted], which, pa.int64()),
    }
    return pa.record_batch(
        [_column(columns.get(field.name, None), arms, field) for field in OUTCOMES], schema=OUTCOMES
    )


def outcome_values(batch: pa.RecordBatch, limit_bytes: int = RECORD_LIMIT_BYTES) -> list[bytes]:
    """One Kafka value, or as many as it takes to keep each below `limit_bytes`; `batch` as `outcome_batch` made it of one partition.

    What came of one label stays together: whoever compares the arms of a prediction sees all of them in one record.
    """
    if not batch.num_rows:
        return []
    value = encode_batch(batch)
    offsets = batch.column("feedback_offset").to_numpy()
    begins = np.flatnonzero(offsets[1:] != offsets[:-1]) + 1
    if len(value) <= limit_bytes or not len(begins):
        return [value]
    middle = int(begins[len(begins) // 2])
    parts = batch.slice(0, middle), batch.slice(middle)
    return [value for part in parts for value in outcome_values(part, limit_bytes)]


def _column(given: Any, arms: pa.Table, field: pa.Field) -> pa.Array:
    """The column of `field`: as computed, or else as the prediction has it, in the contract's type."""
    values = arms[field.name] if given is None else given
    if isinstance(values, np.ndarray):
        values = pa.array(values)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values.cast(field.type)


def _pairs(accepted_ids: list[str], prediction_ids: pa.ChunkedArray) -> tuple[Indices, Indices]:
    """(position in accepted, row of predictions) of every accepted label with every arm of its prediction."""
    counts = pc.run_end_encode(prediction_ids.combine_chunks())
    ends = counts.run_ends.to_numpy().astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    run = pc.index_in(pa.array(accepted_ids, pa.string()), value_set=counts.values).to_numpy()
    arms = (ends - starts)[run]
    which = np.repeat(np.arange(len(run), dtype=np.int64), arms)
    first_of_each = np.cumsum(arms) - arms
    rows = np.repeat(starts[run] - first_of_each, arms) + np.arange(len(which))
    return which, rows


def _repeat(values: list[Any], which: Indices, kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind).take(pa.array(which))


def _scores(column: pa.ChunkedArray, spec: ModelSpec) -> NDArray[np.float64]:
    flat: NDArray[np.float32] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float64).reshape(-1, spec.outputs)


def _losses(scores: NDArray[np.float64], truth: pa.Array, truth_value: pa.Array, spec: ModelSpec) -> Losses:
    if spec.task == "regression":
        return regression(scores, truth_value.to_numpy())
    return classification(
        scores, pc.index_in(truth, value_set=pa.array(spec.classes)).to_numpy().astype(np.int64)
    )


def _previous(
    accepted: Sequence[Accepted],
    which: Indices,
    revised: NDArray[np.bool_],
    scores: NDArray[np.float64],
    spec: ModelSpec,
) -> tuple[pa.Array, Losses]:
    """Truth and losses of the revisions before, computed anew from the same scores; meaningless where `revised` is False."""
    truths = [each.previous.truth if each.previous else "" for each in accepted]
    values = [each.previous.truth_value if each.previous else 0.0 for each in accepted]
    previous = _repeat(truths, which, pa.string())
    stand_in = spec.classes[0] if spec.classes else ""
    # A class that the spec no longer has counts as the first one would: its loss cannot be told any more.
    known = pc.and_(pa.array(revised), pc.is_in(previous, value_set=pa.array(spec.classes, pa.string())))
    filled = pc.if_else(known, previous, stand_in)
    return previous, _losses(scores, filled, _repeat(values, which, pa.float64()), spec)
