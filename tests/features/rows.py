"""Specs and random rows that the tests of this room share."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from features.columns import Columns
from schemas.spec import ModelSpec, decode_spec

EVERYTHING = decode_spec(
    """
    name = "everything"
    task = "multiclass"
    classes = ["a", "b", "c"]
    module = "model:Model"
    [features]
    title = { type = "text", ngrams = [1, 3], buckets = 1000, max_chars = 12, missing = "empty" }
    age = { type = "int", min = 0, max = 100 }
    colour = { type = "category", values = ["red", "green", "blue"], unknown = "other", missing = "other" }
    share = { type = "float", min = 0, max = 1, missing = "mean" }
    body = { type = "text", ngrams = [2, 2], buckets = 7 }
    member = { type = "bool", missing = "mean" }
    [monitor]
    segments = ["share:4", "colour", "member"]
    """,
    "everything",
)


def columns_of(spec: ModelSpec, numbers: list[list[float]], texts: list[list[str]]) -> Columns:
    """Columns from rows; give each of `numbers` and `texts` one list a row, empty if the spec has none."""
    flat = [text for row in texts for text in row]
    values = np.array(numbers, np.float32).reshape(len(numbers), len(spec.numbers))
    return Columns(values, pa.array(flat, pa.string()))


@st.composite
def columns(draw: st.DrawFn, spec: ModelSpec = EVERYTHING, min_rows: int = 0) -> Columns:
    """Any rows of `spec`: missing and absurd numbers, characters beyond the basic plane, empty texts."""
    rows = draw(st.integers(min_rows, 6))
    numbers = draw(
        hnp.arrays(np.float32, (rows, len(spec.numbers)), elements=st.floats(width=32, allow_infinity=False))
    )
    text = st.one_of(
        st.sampled_from(["", "red", "blue"]), st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    )
    texts = draw(st.lists(text, min_size=rows * len(spec.texts), max_size=rows * len(spec.texts)))
    return Columns(numbers, pa.array(texts, pa.string()))
