"""What encoding learns from the training rows. The state is arrays by name, so that it travels as safetensors."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features.columns import Columns
from schemas.spec import ModelSpec

State = dict[str, NDArray[Any]]
MEAN: Final = "mean"
STD: Final = "std"


def fit(spec: ModelSpec, columns: Columns) -> State:
    """`mean` and `std` of each number, float32 [len(spec.numbers)]; missing values are left out.

    A number without a value has mean 0; one without a spread has deviation 1.
    """
    known = ~np.isnan(columns.numbers)
    count = np.maximum(known.sum(axis=0), 1)
    values = np.where(known, columns.numbers, 0).astype(np.float64)
    mean = values.sum(axis=0) / count
    spread = np.where(known, values - mean, 0)
    std = np.sqrt((spread * spread).sum(axis=0) / count).astype(np.float32)
    if std.shape != (len(spec.numbers),):
        raise ValueError(f"{spec.name}: expected {len(spec.numbers)} numbers a row, found {std.shape[0]}")
    return {MEAN: mean.astype(np.float32), STD: np.where(std > 0, std, np.float32(1))}
