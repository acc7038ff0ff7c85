from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.columns import Columns
from features.encode import encode
from features.state import State, fit
from schemas.tensors import DENSE, input_shape, input_tensors
from tests.features.rows import EVERYTHING, columns, columns_of

STATE: State = {
    "mean": np.array([40, 0.5, 0.25], np.float32),
    "std": np.array([10, 0.25, 0.43], np.float32),
}


def rows_of(tensors: State, indices: list[int]) -> list[list[bytes]]:
    """Each row of every tensor as bytes."""
    dense = tensors[DENSE]
    found = []
    for index in indices:
        row = [dense[index].tobytes()]
        for name in input_shape(EVERYTHING).texts:
            ends = [*tensors[f"{name}_offsets"], len(tensors[f"{name}_ids"])]
            row.append(tensors[f"{name}_ids"][ends[index] : ends[index + 1]].tobytes())
        found.append(row)
    return found


@given(columns(min_rows=1), st.data())
def test_a_rows_encoding_does_not_depend_on_its_batch(batch: Columns, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, batch.rows - 1), max_size=8))
    whole, part = encode(EVERYTHING, STATE, batch), encode(EVERYTHING, STATE, batch.take(chosen))
    assert rows_of(part, list(range(len(chosen)))) == rows_of(whole, chosen)


@given(columns())
def test_tensors_have_the_declared_names_types_and_shapes_and_are_finite(batch: Columns) -> None:
    tensors = encode(EVERYTHING, STATE, batch)
    declared = input_tensors(EVERYTHING)
    assert list(tensors) == [tensor.name for tensor in declared]
    for tensor in declared:
        found = tensors[tensor.name]
        assert found.dtype == {"FP32": np.float32, "INT32": np.int32}[tensor.datatype]
        assert found.ndim == len(tensor.shape)
        assert all(want in (-1, have) for want, have in zip(tensor.shape, found.shape, strict=True))
        assert found.flags.c_contiguous
        assert np.isfinite(found).all()
    for name, buckets in input_shape(EVERYTHING).texts.items():
        ids, offsets = tensors[f"{name}_ids"], tensors[f"{name}_offsets"]
        assert len(offsets) == batch.rows
        assert ((ids >= 0) & (ids < buckets)).all()
        assert (np.diff([0, *offsets, len(ids)]) >= 0).all()


def test_numbers_are_standardised_and_a_missing_one_is_the_mean() -> None:
    batch = columns_of(EVERYTHING, [[50, 0.25, 1], [np.nan, np.nan, np.nan]], [["", "", ""]] * 2)
    assert encode(EVERYTHING, STATE, batch)[DENSE][:, :3].tolist() == [[1, -1, 1], [0, 0, 0.25]]


def test_a_category_is_one_hot_and_anything_else_is_all_zeros() -> None:
    texts = [["", value, ""] for value in ("green", "purple", "", "red")]
    dense = encode(EVERYTHING, STATE, columns_of(EVERYTHING, [[0, 0, 0]] * 4, texts))[DENSE]
    assert dense[:, 3:].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_fitting_ignores_missing_values_and_leaves_constants_their_scale() -> None:
    state = fit(
        EVERYTHING,
        columns_of(EVERYTHING, [[1, 5, np.nan], [3, 5, np.nan], [np.nan, 5, np.nan]], [["", "", ""]] * 3),
    )
    assert {name: (array.dtype.name, array.tolist()) for name, array in state.items()} == {
        "mean": ("float32", [2, 5, 0]),
        "std": ("float32", [1, 1, 1]),
    }


def test_an_empty_batch_can_be_fitted() -> None:
    state = fit(EVERYTHING, columns_of(EVERYTHING, [], []))
    assert (state["mean"].tolist(), state["std"].tolist()) == ([0, 0, 0], [1, 1, 1])
