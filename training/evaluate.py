"""What a candidate, its base and simple baselines are worth on rows; and the gates that a candidate has to pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.spec import ModelSpec

Scores = NDArray[np.float32]
Metrics = dict[str, Any]
MIN_GATE_ROWS: Final = 50
"""Fewer unseen rows say nothing about a gain."""
MIN_AGREEMENT: Final = 0.5
"""An update that answers more than half of the rows differently from its base is no update."""
MAX_LOSS_RATIO: Final = 1.5
_MIN_SEGMENT_ROWS: Final = 30
_MAX_SEGMENT_DROP: Final = 0.15
_COLLAPSE_SHARE: Final = 0.1
_SMALLEST: Final = 1e-7


def metrics(spec: ModelSpec, scores: Scores, targets: NDArray[np.float64]) -> Metrics:
    """`rows`, and accuracy, f1_macro and log_loss; or squared_error for a regression. Only `rows` if there is none."""
    if not len(targets):
        return {"rows": 0}
    if spec.task == "regression":
        return {"rows": len(targets), "squared_error": float(np.mean((scores[:, 0] - targets) ** 2))}
    truth = targets.astype(np.int64)
    return labels_metrics(spec, scores.argmax(1), truth) | {"log_loss": log_loss(scores, truth)}


def labels_metrics(spec: ModelSpec, labels: NDArray[np.int64], truth: NDArray[np.int64]) -> Metrics:
    """`rows`, `accuracy` and `f1_macro` (over the classes that occur in labels or truth) of predicted classes."""
    confusion = np.zeros((spec.outputs, spec.outputs), np.int64)
    np.add.at(confusion, (truth, labels), 1)
    hits = np.diag(confusion)
    either = confusion.sum(0) + confusion.sum(1)
    f1 = 2 * hits[either > 0] / either[either > 0]
    return {"rows": len(truth), "accuracy": float(hits.sum() / len(truth)), "f1_macro": float(f1.mean())}


def log_loss(scores: Scores, truth: NDArray[np.int64]) -> float:
    """Mean negative log probability of the truth."""
    chosen = np.maximum(scores[np.arange(len(truth)), truth].astype(np.float64), _SMALLEST)
    return float(-np.log(chosen).mean())


def live_metrics(spec: ModelSpec, labels: NDArray[np.void]) -> Metrics:
    """What the live arm was worth on these rows, by the answers it gave before it knew them (`training.rows.LABELS`);
    rows that it never answered are left out."""
    answered = labels[~np.isnan(labels["loss"])]
    if not len(answered):
        return {"rows": 0}
    loss = float(answered["loss"].astype(np.float64).mean())
    if spec.task == "regression":
        return {"rows": len(answered), "squared_error": loss}
    known = answered[answered["answered"] >= 0]
    return labels_metrics(spec, known["answered"].astype(np.int64), known["target"].astype(np.int64)) | {
        "log_loss": loss
    }


def by_segment(segments: pa.ListArray, measure: Callable[[NDArray[np.int64]], Metrics]) -> Metrics:
    """`measure(positions)` for each segment of at least 30 rows; `segments` holds each row's segments."""
    parents = np.repeat(np.arange(len(segments)), pc.list_value_length(segments).to_numpy())
    names = np.array(segments.flatten().to_pylist(), dtype=object)
    found = {}
    for name in sorted(set(names)):
        rows = parents[names == name]
        if len(rows) >= _MIN_SEGMENT_ROWS:
            found[str(name)] = measure(rows)
    return found


def majority(spec: ModelSpec, fitted: NDArray[np.float64], targets: NDArray[np.float64]) -> Metrics:
    """The baseline that always answers the commonest class (the mean) of the rows fitted on."""
    if spec.task == "regression":
        return metrics(spec, np.full((len(targets), 1), fitted.mean(), np.float32), targets)
    counts = np.bincount(fitted.astype(np.int64), minlength=spec.outputs)
    return metrics(spec, np.tile((counts / counts.sum()).astype(np.float32), (len(targets), 1)), targets)


def logistic_regression(
    spec: ModelSpec, dense: NDArray[np.float32], fitted: NDArray[np.float64], unseen: NDArray[np.float32],
    targets: NDArray[np.float64],
) -> Metrics:  # fmt: skip
    """The baseline on the same dense encoding; nothing for a regression, for texts or if the rows have one class."""
    if spec.task == "regression" or len(np.unique(fitted)) < 2 or not len(targets):
        return {}
    from sklearn.linear_model import LogisticRegression  # only majors pay for the import

    model = LogisticRegression(max_iter=200).fit(dense, fitted.astype(np.int64))
    scores = np.zeros((len(targets), spec.outputs), np.float32)
    scores[:, model.classes_] = model.predict_proba(unseen)
    return metrics(spec, scores, targets)


def value(spec: ModelSpec, found: Metrics) -> float | None:
    """The spec's metric turned so that more is better; None if it was not measured."""
    measured = found.get(spec.rollout.metric)
    if measured is None:
        return None
    return float(measured if spec.rollout.metric == "accuracy" else -measured)


def major_problems(
    spec: ModelSpec, candidate: Metrics, base: Metrics, segments: Metrics, base_segments: Metrics
) -> list[str]:
    """Why a candidate from a full training is refused; empty if it passes. `base` is empty for a first version."""
    problems = []
    new, old = value(spec, candidate), value(spec, base)
    if new is not None and not np.isfinite(new):
        problems.append(f"{spec.rollout.metric} on unseen rows is {new}")
    if (
        new is not None
        and old is not None
        and candidate["rows"] >= MIN_GATE_ROWS
        and new - old < spec.train.min_gain
    ):
        problems.append(
            f"{spec.rollout.metric} on {candidate['rows']} unseen rows: gain {new - old:+.4f} over the base, "
            f"expected at least {spec.train.min_gain:+.4f}"
        )
    for name in sorted(segments.keys() & base_segments.keys()):
        new_accuracy, old_accuracy = segments[name].get("accuracy"), base_segments[name].get("accuracy")
        if (
            new_accuracy is not None
            and old_accuracy is not None
            and old_accuracy - new_accuracy > _MAX_SEGMENT_DROP
        ):
            problems.append(
                f"segment {name}: accuracy {new_accuracy:.3f} against the base's {old_accuracy:.3f}, "
                f"expected a drop of at most {_MAX_SEGMENT_DROP}"
            )
    return problems


def update_problems(spec: ModelSpec, new: Scores, old: Scores, targets: NDArray[np.float64]) -> list[str]:
    """Why an update is refused, judged on the very rows it was fitted on; empty if it is sane.

    These rows say nothing about its gain: that is measured live, on rows it has not seen, and reverts it if need be.
    """
    if not np.isfinite(new).all():
        return ["its scores are not all finite"]
    before, after = metrics(spec, old, targets), metrics(spec, new, targets)
    measure = "squared_error" if spec.task == "regression" else "log_loss"
    problems = []
    if after[measure] > MAX_LOSS_RATIO * before[measure] + 0.1 * (spec.task != "regression"):
        problems.append(
            f"{measure} on the rows fitted on rose from {before[measure]:.4f} to {after[measure]:.4f}, "
            f"expected at most {MAX_LOSS_RATIO} times as much"
        )
    if spec.task == "regression":
        return problems
    agreement = agreed(new, old)
    if agreement < MIN_AGREEMENT and after["accuracy"] <= before["accuracy"]:
        problems.append(
            f"it agrees with its base on {agreement:.3f} of the rows, expected at least {MIN_AGREEMENT}"
        )
    return problems + collapsed(new, old, targets)


def agreed(new: Scores, old: Scores) -> float:
    """Share of the rows that both give the same class."""
    return float((new.argmax(1) == old.argmax(1)).mean()) if len(new) else 1.0


def collapsed(new: Scores, old: Scores, targets: NDArray[np.float64]) -> list[str]:
    """Whether a candidate gives one class only where base and truth have several."""
    given = np.unique(new.argmax(1))
    classes = max(new.shape[1], 1)
    common = [
        np.bincount(labels, minlength=classes) / max(len(labels), 1)
        for labels in (old.argmax(1), targets.astype(np.int64))
    ]
    several = all((share >= _COLLAPSE_SHARE).sum() > 1 for share in common)
    return [f"it answers class {given[0]} for all {len(new)} rows"] if len(given) == 1 and several else []
