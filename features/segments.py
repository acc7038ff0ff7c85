"""Which segments a row belongs to, as `feature=value`: metrics and drift are computed for each of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.columns import Columns
from schemas.arrow import STRINGS
from schemas.spec import BoolFeature, CategoryFeature, FloatFeature, IntFeature, ModelSpec

MISSING: Final = "missing"
OTHER: Final = "other"
_NO_TEXTS: Final = pa.array([], pa.string())


def segments(spec: ModelSpec, columns: Columns) -> pa.ListArray:
    """The segments of each row: a list with one string for each of `spec.monitor.segments`, in that order.

    `feature:n` gives equal ranges such as `period=0.25..0.5` (the lower edge belongs to the range, values outside to the
    first or last one); a category its value or `other`; a bool `true` or `false`; what is missing `feature=missing`.
    """
    if not spec.monitor.segments:
        none = pa.py_buffer(bytes(4 * (columns.rows + 1)))
        return pa.Array.from_buffers(STRINGS, columns.rows, [None, none], children=[_NO_TEXTS])
    labels: list[str] = []
    places: list[NDArray[np.int64]] = []
    for segment in spec.monitor.segments:
        names, which = _segment(spec, segment, columns)
        places.append(which + len(labels))
        labels += names
    flat = np.stack(places, axis=1).ravel()
    offsets = np.arange(columns.rows + 1, dtype=np.int32) * len(places)
    values = pa.array(labels, pa.string()).take(pa.array(flat))
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=STRINGS)


def _segment(spec: ModelSpec, segment: str, columns: Columns) -> tuple[list[str], NDArray[np.int64]]:
    """The labels that one segment can give, and each row's place among them."""
    name, _, parts = segment.partition(":")
    feature = spec.features[name]
    if isinstance(feature, CategoryFeature):
        values = columns.text(spec.texts.index(name))
        known = list(feature.values)
        found = pc.index_in(values, pa.array([*known, ""], pa.string()))
        which = pc.fill_null(found, len(known) + 1).to_numpy(zero_copy_only=False)
        return [f"{name}={value}" for value in (*known, MISSING, OTHER)], which.astype(np.int64)
    numbers = columns.numbers[:, spec.numbers.index(name)]
    if isinstance(feature, BoolFeature):
        return _labelled(name, ["false", "true"], numbers, (numbers > 0).astype(np.int64))
    if not isinstance(feature, FloatFeature | IntFeature) or feature.min is None or feature.max is None:
        raise TypeError(f"monitor.segments: {segment!r} passed the spec's checks but cannot be cut")
    edges = np.linspace(feature.min, feature.max, int(parts) + 1)
    # Compared as float32, which is what the values are: 0.7 belongs to the range that begins at 0.7.
    which = np.searchsorted(edges[1:-1].astype(np.float32), numbers, side="right")
    ranges = [f"{low:.6g}..{high:.6g}" for low, high in pairwise(edges)]
    return _labelled(name, ranges, numbers, which)


def _labelled(
    name: str, values: list[str], numbers: NDArray[np.float32], which: NDArray[Any]
) -> tuple[list[str], NDArray[np.int64]]:
    missing = len(values)
    return [f"{name}={value}" for value in (*values, MISSING)], np.where(np.isnan(numbers), missing, which)
