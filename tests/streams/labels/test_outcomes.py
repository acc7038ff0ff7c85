"""Outcome records: below the topic's limit, and all arms of a label in one."""

from __future__ import annotations

import pyarrow as pa
import pytest

from schemas.arrow import OUTCOMES, decode_batch, encode_batch
from streams.labels.outcomes import outcome_values

ARMS = ("champion", "major", "challenger")


def outcomes(labels: int, classes: int) -> pa.RecordBatch:
    """The arms of labels at offsets 0 …, with scores of `classes` classes."""
    given = {
        "feedback_offset": pa.array([offset for offset in range(labels) for _ in ARMS]),
        "arm": pa.array(ARMS * labels),
        "scores": pa.array([[0.5] * classes] * (labels * len(ARMS)), OUTCOMES.field("scores").type),
    }
    rows = labels * len(ARMS)
    return pa.record_batch(
        [
            given[field.name].cast(field.type) if field.name in given else filler(field.type, rows)
            for field in OUTCOMES
        ],
        schema=OUTCOMES,
    )


def filler(kind: pa.DataType, rows: int) -> pa.Array:
    if pa.types.is_list(kind):
        return pa.array([[]] * rows, kind)
    if pa.types.is_fixed_size_binary(kind):
        return pa.array([bytes(kind.byte_width)] * rows, kind)
    return pa.array([""] * rows, kind) if pa.types.is_string(kind) else pa.array([0] * rows).cast(kind)


@pytest.mark.parametrize("labels", [1, 7, 100])
@pytest.mark.parametrize("limit_kb", [8, 64, 8192])
def test_records_stay_below_the_limit_and_keep_the_arms_of_a_label_together(
    labels: int, limit_kb: int
) -> None:
    batch = outcomes(labels, classes=200)
    one_label_bytes = len(encode_batch(outcomes(1, classes=200)))
    values = outcome_values(batch, limit_kb * 1024)
    parts = [decode_batch(value) for value in values]
    assert pa.Table.from_batches(parts).equals(pa.Table.from_batches([batch]))
    assert all(part["arm"].to_pylist() == list(ARMS) * (part.num_rows // len(ARMS)) for part in parts)
    assert all(len(value) <= max(limit_kb * 1024, one_label_bytes) for value in values)


def test_without_rows_there_is_no_record() -> None:
    assert outcome_values(outcomes(0, classes=2)) == []
