"""Columns → the tensors of `schemas.tensors`. A row's encoding does not depend on the rows around it, bit for bit."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.columns import Columns
from features.ngrams import hashed_ngrams
from features.state import MEAN, STD, State
from schemas.spec import BoolFeature, CategoryFeature, ModelSpec, TextFeature
from schemas.tensors import DENSE, input_shape

Tensors = dict[str, NDArray[Any]]
LARGEST: Final = np.float32(1e6)
"""Standardised numbers are cut to ± this: a value far outside the training data must not become infinite in the model."""


def encode(spec: ModelSpec, state: State, columns: Columns) -> Tensors:
    """The input tensors of `spec` for `columns`, by name: shapes and types as in `schemas.tensors.input_tensors`.

    A missing number becomes the mean, a category that is not in the spec all zeros, a missing text no n-grams.
    """
    tensors: Tensors = {}
    width = input_shape(spec).dense
    if width:
        dense = np.zeros((columns.rows, width), np.float32)
        _standardise(spec, state, columns.numbers, dense[:, : columns.numbers.shape[1]])
        tensors[DENSE] = dense
    column = columns.numbers.shape[1]
    for index, name in enumerate(spec.texts):
        feature = spec.features[name]
        if isinstance(feature, CategoryFeature):
            _one_hot(columns.text(index), feature, dense[:, column : column + len(feature.values)])
            column += len(feature.values)
        elif isinstance(feature, TextFeature):
            bags = hashed_ngrams(columns.text(index), feature)
            tensors[f"{name}_ids"] = bags.ids
            tensors[f"{name}_offsets"] = bags.offsets
    return tensors


def _standardise(
    spec: ModelSpec, state: State, numbers: NDArray[np.float32], target: NDArray[np.float32]
) -> None:
    """Write (x - mean) / std into `target`, with the mean for what is missing; a bool stays 0 or 1."""
    raw = np.array([isinstance(spec.features[name], BoolFeature) for name in spec.numbers], dtype=bool)
    mean, std = state[MEAN], state[STD]
    center = np.where(raw, np.float32(0), mean)
    scale = np.where(raw, np.float32(1), std)
    missing = np.isnan(numbers)
    known = np.where(missing, mean, numbers) if missing.any() else numbers
    with np.errstate(over="ignore"):
        np.subtract(known, center, out=target)
        np.divide(target, scale, out=target)
    np.clip(target, -LARGEST, LARGEST, out=target)


def _one_hot(values: pa.StringArray, feature: CategoryFeature, target: NDArray[np.float32]) -> None:
    """Set `target` [rows, len(feature.values)], which holds zeros, to 1 where a row has the value."""
    found = pc.fill_null(pc.index_in(values, pa.array(feature.values, pa.string())), -1)
    positions = found.to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(positions >= 0)
    target[rows, positions[rows]] = 1
