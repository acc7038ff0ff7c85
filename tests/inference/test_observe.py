"""A micro-batch whose observations are too large for one record: what several arms said of a row stays together."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest

from inference import observe
from inference.observe import observation_values, shared_values
from inference.progress import Observed
from schemas.arrow import OBSERVATIONS, decode_batch

ROWS = 100


def observations(text_chars: int) -> tuple[pa.RecordBatch, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Rows 0 to 99 by the champion, then the even ones by a shadow, then 100 and 101, which nobody answered."""
    row_of = np.array([*range(ROWS), *range(0, ROWS, 2), ROWS, ROWS + 1])
    arms = ["champion"] * ROWS + ["shadow"] * (ROWS // 2) + ["", ""]
    fields = {
        "prediction_id": [int(row).to_bytes(16, "big") for row in row_of],
        "arm": arms,
        "texts": [["x" * text_chars]] * len(row_of),
    }
    filled = [fields.get(field.name, [None] * len(row_of)) for field in OBSERVATIONS]
    arrays = [pa.array(values, field.type) for values, field in zip(filled, OBSERVATIONS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=OBSERVATIONS), row_of


def test_a_batch_below_the_limit_is_one_record_as_it_is() -> None:
    batch, row_of = observations(10)
    (value,) = observation_values(batch, row_of)
    assert decode_batch(value).equals(batch)


def test_what_is_committed_of_a_micro_batch_is_one_record_with_all_arms_of_its_rows() -> None:
    batch, row_of = observations(10)
    observed = Observed(batch, row_of, np.array([0, 40, 41, ROWS + 2]), [])
    (whole,) = shared_values(observed, [0, 1, 2])
    assert decode_batch(whole).equals(batch)
    (some,) = shared_values(observed, [2, 0])
    (other,) = shared_values(observed, [1])
    of_some = ~((row_of >= 40) & (row_of < 41))
    assert decode_batch(some).equals(batch.filter(pa.array(of_some)))
    assert decode_batch(other).to_pylist() == batch.filter(pa.array(~of_some)).to_pylist()
    assert [row["arm"] for row in decode_batch(other).to_pylist()] == ["champion", "shadow"]


def test_a_split_leaves_all_arms_of_a_row_in_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "RECORD_LIMIT_BYTES", 64 * 1024)
    batch, row_of = observations(4000)
    values = observation_values(batch, row_of)
    assert len(values) > 8
    assert max(map(len, values)) <= 64 * 1024
    found: dict[bytes, list[tuple[int, str]]] = defaultdict(list)
    for number, value in enumerate(values):
        for row in decode_batch(value).select(["prediction_id", "arm"]).to_pylist():
            found[row["prediction_id"]].append((number, row["arm"]))
    assert all(len({number for number, _ in each}) == 1 for each in found.values())
    assert Counter(arm for each in found.values() for _, arm in each) == {
        "champion": 100, "shadow": 50, "": 2,
    }  # fmt: skip


def test_what_one_arm_said_is_cut_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "RECORD_LIMIT_BYTES", 64 * 1024)
    batch, row_of = observations(4000)
    values = observation_values(batch.slice(0, ROWS), row_of[:ROWS])
    assert max(map(len, values)) <= 64 * 1024
    assert pa.Table.from_batches(map(decode_batch, values)).equals(
        pa.Table.from_batches([batch.slice(0, ROWS)])
    )


def test_one_row_whose_arms_are_too_large_together_is_split_by_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "RECORD_LIMIT_BYTES", 64 * 1024)
    batch, row_of = observations(40_000)
    values = observation_values(batch, row_of)
    assert max(map(len, values)) <= 64 * 1024
    assert sum(decode_batch(value).num_rows for value in values) == batch.num_rows
