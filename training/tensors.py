"""Rows of encoded tensors: how a mini-batch is cut out of them, texts included."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from features.encode import Tensors
from schemas.spec import ModelSpec
from schemas.tensors import DENSE, InputShape, input_shape
from triton_models.hosting import scores

SCORED_ROWS: Final = 2048
"""Rows scored at once."""


def take(shape: InputShape, tensors: Tensors, rows: NDArray[np.int64]) -> Tensors:
    """The encoded rows at `rows`, in that order."""
    taken: Tensors = {}
    if shape.dense:
        taken[DENSE] = tensors[DENSE][rows]
    for name in shape.texts:
        ids, offsets = _take_bags(tensors[f"{name}_ids"], tensors[f"{name}_offsets"], rows)
        taken[f"{name}_ids"], taken[f"{name}_offsets"] = ids, offsets
    return taken


def batch(shape: InputShape, tensors: Tensors, rows: NDArray[np.int64]) -> dict[str, Tensor]:
    """`take` as torch tensors."""
    return {name: torch.from_numpy(array) for name, array in take(shape, tensors, rows).items()}


def _take_bags(
    ids: NDArray[Any], offsets: NDArray[Any], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The bags at `rows` one after the other, and where each begins."""
    starts = offsets.astype(np.int64)
    lengths = np.diff(np.append(starts, len(ids)))[rows]
    begins = np.cumsum(lengths) - lengths
    places = np.arange(int(lengths.sum())) + np.repeat(starts[rows] - begins, lengths)
    return ids[places].astype(np.int32, copy=False), begins.astype(np.int32)


def scored(
    module: nn.Module, spec: ModelSpec, tensors: Tensors, rows: int, temperature: float
) -> NDArray[np.float32]:
    """The scores of the first `rows` rows, float32 [rows, outputs], as Triton would answer."""
    shape = input_shape(spec)
    module.eval()
    parts = [
        scores(
            module, batch(shape, tensors, np.arange(start, min(start + SCORED_ROWS, rows))), spec, temperature
        )
        for start in range(0, rows, SCORED_ROWS)
    ]
    found: NDArray[np.float32] = (torch.cat(parts) if parts else torch.zeros(0, spec.outputs)).numpy()
    return found
