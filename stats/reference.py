"""What drift is measured against: histograms of the rows that a version was trained on, and a batch counted in their bins.

Training calls `references` and stores the result in the artifact; the drift processor calls `counts` on every micro-batch.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.artifact import Reference, References
from schemas.spec import CategoryFeature, ModelSpec
from stats.histogram import Counts, number_counts, text_counts, value_counts

NUMBER_BINS: Final = 10
SCORE: Final = "score"
"""The subject under which a version's own scores stand beside the features."""


def references(
    spec: ModelSpec,
    numbers: NDArray[np.float32],
    texts: pa.StringArray,
    scores: NDArray[np.float32],
) -> References:
    """The references of a version.

    `numbers`: (rows, len(spec.numbers)), NaN is missing. `texts`: rows * len(spec.texts) strings, row after row.
    `scores`: (any number of rows, spec.outputs), the version's own, best on rows it was not fitted on: on those it was
    fitted on it is surer of itself than it will ever be again, and that difference would look like drift.
    """
    if numbers.ndim != 2 or numbers.shape[1] != len(spec.numbers):
        raise ValueError(f"numbers: found shape {numbers.shape}, expected (rows, {len(spec.numbers)})")
    rows = len(numbers) if spec.numbers else len(texts) // max(len(spec.texts), 1)
    features = {name: number_reference(numbers[:, i]) for i, name in enumerate(spec.numbers)}
    for i, name in enumerate(spec.texts):
        feature = spec.features[name]
        column = text_column(texts, i, len(spec.texts))
        if isinstance(feature, CategoryFeature):
            features[name] = value_reference(column, list(feature.values))
        else:
            features[name] = text_reference(column)
    features[SCORE] = number_reference(score_of(spec, scores))
    return References(rows=rows, features=features)


def counts(
    spec: ModelSpec,
    against: References,
    numbers: NDArray[np.float32],
    texts: pa.StringArray,
    scores: NDArray[np.float32],
) -> dict[str, Counts]:
    """A batch counted in the bins of `against`, by feature and `score`; shapes as in `references`.

    A feature that `against` does not have (the spec grew since) is left out: there is nothing to compare it with.
    """
    columns = np.ascontiguousarray(numbers.T)
    found = {
        name: reference_counts(against.features[name], column)
        for name, column in zip(spec.numbers, columns, strict=True)
        if name in against.features
    }
    for i, name in enumerate(spec.texts):
        if name in against.features:
            found[name] = reference_counts(against.features[name], text_column(texts, i, len(spec.texts)))
    found[SCORE] = reference_counts(against.features[SCORE], score_of(spec, scores))
    return found


def reference_counts(reference: Reference, values: Any) -> Counts:
    """`values` (float32 array, or pa.StringArray) in the bins of `reference`."""
    if reference.kind == "edges":
        return number_counts(values, np.array(reference.edges, dtype=np.float64))
    if reference.kind == "values":
        return value_counts(values, reference.values)
    if reference.kind == "characters":
        return text_counts(values)
    raise ValueError(f"reference: found kind {reference.kind!r}, expected edges, values or characters")


def number_reference(values: NDArray[np.float32]) -> Reference:
    """At most `NUMBER_BINS` bins of about equal counts. A constant gets three: below it, itself, above it."""
    present = values[~np.isnan(values)]
    if len(present) == 0:
        edges = np.array([], dtype=np.float32)
    elif present.min() == present.max():
        edges = np.array([present[0], np.nextafter(present[0], np.float32(np.inf))], dtype=np.float32)
    else:
        inner = np.linspace(0, 1, NUMBER_BINS + 1)[1:-1]
        # Quantiles that are values of the data: a column of few distinct values is cut between them, never within one.
        edges = np.unique(np.quantile(present, inner, method="higher"))
        edges = edges[edges > present.min()]
        if len(edges) == 0:  # nearly constant: the rare larger values are a bin of their own
            edges = np.array([present[present > present.min()].min()])
    exact = edges.astype(np.float64)
    return Reference(kind="edges", counts=number_counts(values, exact).tolist(), edges=exact.tolist())


def value_reference(texts: pa.StringArray, values: list[str]) -> Reference:
    """One bin for each of `values`, one for anything else."""
    return Reference(kind="values", counts=value_counts(texts, values).tolist(), values=values)


def text_reference(texts: pa.StringArray) -> Reference:
    """Characters and lengths, see `stats.histogram.text_counts`."""
    return Reference(kind="characters", counts=text_counts(texts).tolist())


def score_of(spec: ModelSpec, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """The one number whose distribution stands for the scores, shape (rows,): the value of a regression; the probability of
    the second class of two; else the probability of the likeliest class."""
    if spec.task == "multiclass":
        return scores.max(axis=1) if len(scores) else np.empty(0, dtype=np.float32)
    return scores[:, -1]


def text_column(texts: pa.StringArray, index: int, width: int) -> pa.StringArray:
    """Column `index` of `width` text columns that lie row after row in one array."""
    return texts if width == 1 else texts.take(pa.array(np.arange(index, len(texts), width)))
