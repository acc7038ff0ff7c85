"""References: the training rows counted in their own bins are the reference itself, and bins fit the data."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from schemas.spec import decode_spec
from stats.reference import NUMBER_BINS, counts, number_reference, reference_counts, references, score_of

SPEC = decode_spec(
    """
name = "every"
task = "binary"
classes = ["no", "yes"]
module = "model:Every"
[features]
kind = { type = "category", values = ["x", "y"], unknown = "other" }
size = { type = "float", missing = "mean" }
text = { type = "text" }
flag = { type = "bool" }
""",
    "model.toml",
)


def test_the_training_rows_counted_again_are_the_reference() -> None:
    rng = np.random.default_rng(3)
    numbers = np.stack([rng.normal(size=999), rng.integers(0, 2, 999)], axis=1).astype(np.float32)
    numbers[:5, 0] = np.nan
    texts = pa.array([text for i in range(999) for text in ("xyz"[i % 3], "好" * (i % 40))])
    scores = rng.dirichlet([1, 1], 999).astype(np.float32)
    made = references(SPEC, numbers, texts, scores)
    assert made.rows == 999
    assert list(made.features) == ["size", "flag", "kind", "text", "score"]
    again = counts(SPEC, made, numbers, texts, scores)
    assert {name: found.tolist() for name, found in again.items()} == {
        name: reference.counts for name, reference in made.features.items()
    }
    assert made.features["kind"].counts == [333, 333, 333]
    assert made.features["size"].counts[-1] == 5


def test_bins_hold_about_equal_counts() -> None:
    values = np.random.default_rng(1).lognormal(size=5000).astype(np.float32)
    made = number_reference(values)
    assert len(made.counts) == NUMBER_BINS + 1
    assert max(made.counts[:-1]) - min(made.counts[:-1]) <= 10


@pytest.mark.parametrize(
    ("values", "other"),
    [([3.0] * 50, [3.1]), ([0.0] * 99 + [1.0], [1.0]), ([0.0, 1.0] * 20, [1.0]), ([-1.0] * 50, [-1.1])],
)
def test_a_column_of_few_values_still_tells_them_apart(values: list[float], other: list[float]) -> None:
    made = number_reference(np.array(values, dtype=np.float32))
    first = np.argmax(reference_counts(made, np.array(values[:1], dtype=np.float32)))
    assert first != np.argmax(reference_counts(made, np.array(other, dtype=np.float32)))


def test_a_column_without_a_number_has_only_missing_ones() -> None:
    made = number_reference(np.full(4, np.nan, dtype=np.float32))
    assert (made.edges, made.counts) == ([], [0, 4])


def test_the_score_of_two_classes_is_the_second_ones() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    assert score_of(SPEC, scores).tolist() == pytest.approx([0.1, 0.8])


def test_a_matrix_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(rows, 2\)"):
        references(SPEC, np.zeros((3, 5), np.float32), pa.array(["x"] * 6), np.zeros((3, 2), np.float32))
