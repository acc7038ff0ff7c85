"""Rows at random that a model admits. Without torch: a process that only sends requests need not wait for it."""

from __future__ import annotations

import string
from typing import Final

import numpy as np
import pyarrow as pa

from features.columns import Columns
from schemas.spec import BoolFeature, CategoryFeature, FloatFeature, IntFeature, ModelSpec, TextFeature

_LETTERS: Final = np.frombuffer((string.ascii_lowercase + "     ").encode(), np.uint8)


def sample(spec: ModelSpec, rows: int, rng: np.random.Generator) -> Columns:
    """Rows that the model admits: numbers uniform between min and max (0 and 1 where the spec names none), random texts."""
    numbers = np.empty((rows, len(spec.numbers)), np.float32)
    for i, name in enumerate(spec.numbers):
        feature = spec.features[name]
        if isinstance(feature, BoolFeature):
            numbers[:, i] = rng.integers(0, 2, rows)
        elif isinstance(feature, FloatFeature | IntFeature):
            low = 0.0 if feature.min is None else feature.min
            high = low + 1.0 if feature.max is None else feature.max
            drawn = rng.uniform(low, high, rows)
            numbers[:, i] = np.floor(drawn) if isinstance(feature, IntFeature) else drawn
    texts = [_text(spec, name, rng) for _ in range(rows) for name in spec.texts]
    return Columns(numbers, pa.array(texts, pa.string()))


def _text(spec: ModelSpec, name: str, rng: np.random.Generator) -> str:
    feature = spec.features[name]
    if isinstance(feature, CategoryFeature):
        return str(rng.choice(feature.values))
    if isinstance(feature, TextFeature):
        return _LETTERS[rng.integers(0, len(_LETTERS), feature.max_chars)].tobytes().decode()
    raise AssertionError(f"{name} is no text")
