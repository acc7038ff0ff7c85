"""Observations made by hand, as the gateway writes them: for stages that are measured without it."""

from __future__ import annotations

import time
import uuid
from typing import Any, Final

import numpy as np
import pyarrow as pa

from benchmarks.sample import sample
from schemas.arrow import OBSERVATIONS, encode_batch
from schemas.identity import prediction_ids
from schemas.spec import ModelSpec

_DISTINCT_ROWS: Final = 1024
"""Whose features differ."""


class Observed:
    """Batches of observations of one model; no two rows have the same id."""

    def __init__(self, spec: ModelSpec, version: str, seed: int) -> None:
        self._spec, self._version = spec, version
        self._topic_id = uuid.UUID(int=seed << 64 | time.time_ns())
        self._rng = np.random.default_rng(seed)
        self._columns = sample(spec, _DISTINCT_ROWS, self._rng)
        self._next = 0

    def batch(self, rows: int, at_ms: int | None = None) -> pa.RecordBatch:
        """The next `rows` observations, requested and answered now."""
        at_ms = time.time_ns() // 1_000_000 if at_ms is None else at_ms
        offsets = np.arange(self._next, self._next + rows)
        self._next += rows
        stamps = np.full(rows, at_ms, np.int64)
        ids = prediction_ids(stamps, [(self._topic_id, 0, rows)], offsets, np.zeros(rows, np.int64))
        first = self._rng.random(rows, np.float32)
        scores = np.stack([1 - first, first], axis=1)
        numbers, texts = self._columns.take(np.arange(rows) % _DISTINCT_ROWS).as_lists()
        known: dict[str, Any] = {
            "prediction_id": [each.tobytes() for each in ids],
            "entity": [f"entity-{offset % 1000}" for offset in offsets.tolist()],
            "offset": offsets,
            "score": scores.max(axis=1),
            "scores": scores.tolist(),
            "label": [self._spec.classes[i] for i in scores.argmax(axis=1)],
            "numbers": numbers,
            "texts": texts,
            "requested_at": stamps,
            "observed_at": stamps,
        }
        constant: dict[str, Any] = {
            "model": self._spec.name, "role": "live", "arm": "champion", "version": self._version, "propensity": 1.0,
            "status": "answered", "topic_id": self._topic_id.bytes, "infer_ms": 1.0,
        }  # fmt: skip
        arrays = []
        for column in OBSERVATIONS:
            if column.name in known:
                arrays.append(_array(known[column.name], column.type))
            else:
                arrays.append(_constant(constant.get(column.name), column.type, rows))
        return pa.RecordBatch.from_arrays(arrays, schema=OBSERVATIONS)

    def record(self, rows: int) -> bytes:
        """The same as the value of a Kafka record."""
        return encode_batch(self.batch(rows))


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, np.ndarray) and pa.types.is_timestamp(kind):
        return pa.array(values).cast(kind)
    return pa.array(values, kind)


def _constant(value: Any, kind: pa.DataType, rows: int) -> pa.Array:
    """`value`, or where there is none the type's zero."""
    if pa.types.is_list(kind):
        return pa.array([[]] * rows, kind)
    if value is None:
        value = "" if pa.types.is_string(kind) else 0
    return pa.repeat(pa.scalar(value, kind), rows)
