"""Paired losses out of outcome batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from control.pairs import Versions, differences, first_labels
from schemas.arrow import OUTCOMES
from schemas.spec import ModelSpec, decode_spec


def spec(metric: str = "accuracy") -> ModelSpec:
    return decode_spec(
        f"""
        name = "m"
        task = "binary"
        classes = ["down", "up"]
        module = "model:M"
        features = {{ x = {{ type = "float" }} }}
        rollout = {{ metric = "{metric}" }}
        """,
        "test",
    )


def outcome(
    prediction: int, role: str, version: str, correct: int, loss: float = 0.5, **other: Any
) -> dict[str, Any]:
    blank: dict[str, Any] = {
        name: b"\0" * 16 if "id" in name and name != "feedback_id" else 0 for name in OUTCOMES.names
    }
    blank |= dict.fromkeys(("entity", "arm", "feedback_id", "truth", "label", "previous_truth"), "")
    row = {
        "prediction_id": prediction.to_bytes(16, "big"), "model": "m", "role": role, "version": version, "correct": correct,
        "loss": loss, "scores": [0.5, 0.5], "segments": [], "requested_at": prediction, "joined_at": 1000 + prediction,
    }  # fmt: skip
    return blank | row | other


def batch(*rows: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=OUTCOMES)


def test_pairs_are_matched_by_prediction_and_unmatched_rows_are_left_out() -> None:
    rows = batch(
        outcome(1, "live", "1.3", 1), outcome(1, "shadow", "1.0", 0),
        outcome(2, "live", "1.3", 0), outcome(2, "shadow", "1.0", 1),
        outcome(3, "live", "2.0", 1), outcome(3, "shadow", "1.0", 0),
        outcome(4, "live", "1.4", 1),
    )  # fmt: skip
    found = differences(
        spec(), first_labels(rows, "m").table, Versions("live", "1.*"), Versions("shadow", "1.0")
    )
    assert found.tolist() == [-1.0, 1.0]


def test_a_version_in_two_shadow_arms_counts_once() -> None:
    rows = batch(
        outcome(1, "live", "1.3", 1),
        outcome(1, "shadow", "1.0", 0, arm="major"),
        outcome(1, "shadow", "1.0", 0, arm="baseline"),
    )
    found = differences(
        spec(), first_labels(rows, "m").table, Versions("live", "1.*"), Versions("shadow", "1.0")
    )
    assert found.tolist() == [-1.0]


def test_revisions_and_other_models_are_left_out_and_live_rows_are_counted() -> None:
    rows = batch(
        outcome(1, "live", "1.3", 1), outcome(1, "live", "1.3", 0, revision=1), outcome(2, "live", "1.3", 1, model="other"),
        outcome(3, "shadow", "1.0", 1),
    )  # fmt: skip
    labels = first_labels(rows, "m")
    assert (labels.live_rows, labels.joined_through_ms) == (1, 1003)


@pytest.mark.parametrize(("loss", "expected"), [(0.5, 0.0), (2.5, 0.5), (90.0, 1.0)])
def test_a_difference_of_log_losses_is_bounded(loss: float, expected: float) -> None:
    rows = batch(outcome(1, "live", "1.3", 1, loss), outcome(1, "shadow", "1.0", 0, 0.5))
    found = differences(
        spec("log_loss"), first_labels(rows, "m").table, Versions("live", "1.3"), Versions("shadow", "1.0")
    )
    assert np.allclose(found, [expected])
