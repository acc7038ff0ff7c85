"""Histograms merge, and their quantiles are right to within a bin."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stats.histogram import (
    CHARACTER_BINS,
    LATENCY_EDGES_MS,
    TEXT_BINS,
    bin_of,
    number_counts,
    quantile,
    text_counts,
    value_counts,
)

latencies = st.lists(st.floats(0, 500_000), min_size=1, max_size=200)


def counted(values: list[float]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.bincount(bin_of(np.array(values), LATENCY_EDGES_MS), minlength=len(LATENCY_EDGES_MS) + 1)


@given(latencies, st.floats(0, 1))
def test_a_quantile_lies_in_the_bin_of_the_exact_one(values: list[float], q: float) -> None:
    estimate = quantile(counted(values), LATENCY_EDGES_MS, q)
    exact = float(np.quantile(values, q, method="inverted_cdf"))
    assert estimate is not None
    bins = bin_of(np.array([exact]), LATENCY_EDGES_MS)[0]
    low = LATENCY_EDGES_MS[bins - 1] if bins else 0.0
    high = LATENCY_EDGES_MS[min(bins, len(LATENCY_EDGES_MS) - 1)]
    assert low <= estimate <= high


def test_an_empty_histogram_has_no_quantile() -> None:
    assert quantile(np.zeros(42, dtype=np.int64), LATENCY_EDGES_MS, 0.5) is None


@given(latencies, latencies)
def test_counts_of_two_parts_add_up_to_those_of_the_whole(a: list[float], b: list[float]) -> None:
    assert (counted(a) + counted(b)).tolist() == counted(a + b).tolist()


@given(
    st.lists(st.floats(width=32), max_size=50),
    st.lists(st.floats(-10, 10), min_size=1, max_size=12, unique=True),
)
def test_numbers_are_counted_in_the_bins_that_a_search_finds(values: list[float], inner: list[float]) -> None:
    edges = np.sort(np.array(inner))
    # Values at the edges, and at what they are rounded to, which may be in the bin beside.
    numbers = np.concatenate([np.array(values, np.float32), edges.astype(np.float32)])
    present = numbers[~np.isnan(numbers)]
    searched = np.bincount(bin_of(present.astype(np.float64), edges), minlength=len(edges) + 1).tolist()
    assert number_counts(numbers, edges).tolist() == [*searched, len(numbers) - len(present)]


def test_missing_numbers_have_a_bin_of_their_own() -> None:
    values = np.array([np.nan, 0.5, 1.0, 3.0, np.nan], dtype=np.float32)
    assert number_counts(values, np.array([1.0, 2.0])).tolist() == [1, 1, 1, 2]


def test_an_unknown_value_counts_as_other() -> None:
    assert value_counts(pa.array(["b", "a", "c", "b", ""]), ["a", "b"]).tolist() == [1, 2, 2]


@given(st.lists(st.text(max_size=30), max_size=20), st.integers(0, 20))
def test_texts_are_counted_by_character_and_by_length(texts: list[str], cut: int) -> None:
    whole = text_counts(pa.array(texts, pa.string()))
    assert len(whole) == TEXT_BINS
    assert whole[:CHARACTER_BINS].sum() == sum(len(text) for text in texts)
    assert whole[CHARACTER_BINS:].sum() == len(texts)
    both = pa.array(texts, pa.string())
    # Slices share the buffers of the whole: each counts its own part only.
    assert (text_counts(both[:cut]) + text_counts(both[cut:])).tolist() == whole.tolist()


@pytest.mark.parametrize(
    ("length", "expected"), [(0, 0), (1, 1), (2, 1), (3, 2), (6, 2), (7, 3), (10**6, 15)]
)
def test_lengths_double_from_bin_to_bin(length: int, expected: int) -> None:
    counts = text_counts(pa.array(["水" * length]))[CHARACTER_BINS:]
    assert int(np.argmax(counts)) == expected
