from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.columns import Columns
from schemas.arrow import F32S, STRINGS
from tests.features.rows import EVERYTHING, columns, columns_of


def same(left: Columns, right: Columns) -> bool:
    return left.numbers.tobytes() == right.numbers.tobytes() and left.texts.equals(right.texts)


@given(columns())
def test_columns_survive_the_list_columns_of_an_observation(batch: Columns) -> None:
    numbers, texts = batch.as_lists()
    assert numbers.type == F32S
    assert texts.type == STRINGS
    assert same(Columns.from_lists(numbers, texts, EVERYTHING), batch)


@given(columns(), columns(), st.data())
def test_taking_the_parts_of_a_concatenation_gives_the_parts_back(
    one: Columns, two: Columns, data: st.DataObject
) -> None:
    both = Columns.concat([one, two])
    assert same(both.take(np.arange(one.rows)), one)
    assert same(both.take(np.arange(one.rows, both.rows)), two)
    order = data.draw(st.permutations(range(both.rows)))
    assert same(both.take(order).take(np.argsort(order)), both)


def test_lists_may_be_a_slice_of_a_longer_batch() -> None:
    batch = columns_of(EVERYTHING, [[1, 0.1, 0], [2, 0.2, 1], [3, 0.3, 0]], [["x", "red", "y"]] * 3)
    numbers, texts = batch.as_lists()
    assert same(Columns.from_lists(numbers.slice(1, 2), texts.slice(1, 2), EVERYTHING), batch.take([1, 2]))


def test_a_text_column_is_read_by_its_place_in_the_spec() -> None:
    batch = columns_of(EVERYTHING, [[0, 0, 0]] * 2, [["t1", "red", "b1"], ["t2", "blue", "b2"]])
    assert [batch.text(index).to_pylist() for index in range(3)] == [
        ["t1", "t2"],
        ["red", "blue"],
        ["b1", "b2"],
    ]


def test_lists_of_another_length_than_the_spec_asks_for_are_refused() -> None:
    numbers, texts = columns_of(EVERYTHING, [[1, 2, 3]], [["a", "b", "c"]]).as_lists()
    with pytest.raises(
        ValueError, match=r"numbers: expected 1 lists of 3 values each for model 'everything'"
    ):
        Columns.from_lists(pa.array([[1.0]], F32S), texts, EVERYTHING)
    with pytest.raises(ValueError, match=r"texts: expected 1 lists of 3 values"):
        Columns.from_lists(numbers, pa.array([["a"], ["b"]], STRINGS), EVERYTHING)
