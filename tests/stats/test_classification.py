"""Metrics from a confusion matrix equal scikit-learn's from the rows."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from stats.classification import brier_scores, log_losses, report

rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


@given(rows)
def test_a_report_equals_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    truth, label = (np.array(column) for column in zip(*pairs, strict=True))
    confusion = np.zeros((4, 4), dtype=np.int64)
    np.add.at(confusion, (truth, label), 1)
    found = report(confusion)
    assert found is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes that were never predicted
        assert found.accuracy == pytest.approx(metrics.accuracy_score(truth, label))
        assert found.f1_macro == pytest.approx(metrics.f1_score(truth, label, average="macro"))
        assert found.f1_weighted == pytest.approx(metrics.f1_score(truth, label, average="weighted"))
        assert found.precision_macro == pytest.approx(metrics.precision_score(truth, label, average="macro"))
        assert found.recall_macro == pytest.approx(metrics.recall_score(truth, label, average="macro"))


def test_an_empty_matrix_has_no_report() -> None:
    assert report(np.zeros((2, 2), dtype=np.int64)) is None


def test_losses_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    scores = rng.dirichlet([1, 1, 1], 200).astype(np.float32)
    truths = rng.integers(0, 3, 200)
    exact = scores / scores.sum(axis=1, keepdims=True, dtype=float)
    assert log_losses(scores, truths).mean() == pytest.approx(metrics.log_loss(truths, exact), rel=1e-5)
    assert brier_scores(scores, truths).mean() == pytest.approx(
        np.mean(np.sum((scores - np.eye(3)[truths]) ** 2, axis=1))
    )


def test_a_probability_of_zero_costs_much_but_not_infinitely_much() -> None:
    (loss,) = log_losses(np.array([[1.0, 0.0]], dtype=np.float32), np.array([1]))
    assert 15 < loss < 17
