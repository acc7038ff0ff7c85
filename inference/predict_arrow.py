"""Answers → predictions of Arrow records: columns, one batch for a micro-batch, a slice of it for each record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from inference.infer import Answer
from inference.observe import constant
from inference.predict import id_characters
from schemas.arrow import F32S, PREDICTIONS
from schemas.errors import Rejection
from schemas.spec import ModelSpec

SHOWN_CHARS: Final = 100
"""Of a rejection's texts: the answer to the largest request must fit into one record."""


def prediction_rows(
    spec: ModelSpec,
    ids: NDArray[np.void],
    request_ids: Mapping[int, str],
    accepted: NDArray[np.int64],
    answers: Sequence[Answer],
    rejections: Mapping[int, Rejection],
    attempts: NDArray[np.uint8],
) -> pa.RecordBatch:
    """The prediction or the rejection of each row of a micro-batch, in the rows' order. `attempts` is by row."""
    n = len(ids)
    outputs = spec.outputs
    scores = np.full((n, outputs), np.nan, np.float32)
    propensities = np.ones(n, np.float32)
    arms, versions = [""], [""]
    served = np.zeros(n, np.int32)
    for answer in answers:
        if answer.share.served.arm.role != "live":
            continue
        rows = accepted[answer.share.rows]
        scores[rows] = answer.scores
        propensities[rows] = answer.share.propensity
        served[rows] = len(arms)
        arms.append(answer.share.served.arm.name)
        versions.append(answer.share.served.version.name)
    refused = np.zeros(n, bool)
    refused[list(rejections)] = True
    scores[refused] = np.nan
    propensities[refused] = 1
    served[refused] = 0
    best = scores.argmax(axis=1)
    labels = [*(spec.classes or [""] * outputs), ""]
    widths = np.where(refused, 0, outputs).astype(np.int32)
    columns = {
        "prediction_id": _id_texts(ids),
        "request_id": (
            pa.array([request_ids.get(row, "") for row in range(n)], pa.string()) if request_ids else constant("", n)
        ),
        "model": constant(spec.name, n),
        "status": _chosen(["answered", "rejected"], refused.astype(np.int8)),
        "version": _chosen(versions, served),
        "arm": _chosen(arms, served),
        "propensity": pa.array(propensities),
        "label": _chosen(labels, np.where(refused, len(labels) - 1, best)),
        "score": pa.array(scores[np.arange(n), best]),
        "scores": pa.ListArray.from_arrays(
            pa.array(np.concatenate([np.zeros(1, np.int32), np.cumsum(widths, dtype=np.int32)])),
            pa.array(scores[~refused].ravel()), type=F32S,
        ),
        **_why(n, rejections),
        "attempt": pa.array(attempts),
    }  # fmt: skip
    return pa.RecordBatch.from_arrays([columns[name] for name in PREDICTIONS.names], schema=PREDICTIONS)


def _id_texts(ids: NDArray[np.void]) -> pa.StringArray:
    ends = pa.py_buffer(np.arange(len(ids) + 1, dtype=np.int32) * np.int32(36))
    return pa.Array.from_buffers(pa.string(), len(ids), [None, ends, pa.py_buffer(id_characters(ids))])


def _why(n: int, rejections: Mapping[int, Rejection]) -> dict[str, pa.Array]:
    names = ("reason", "field", "expected", "message")
    if not rejections:
        return {name: constant("", n) for name in names}
    found = {name: [""] * n for name in names}
    for row, rejection in rejections.items():
        for name in names:
            found[name][row] = getattr(rejection, name)[:SHOWN_CHARS]
    return {name: pa.array(texts, pa.string()) for name, texts in found.items()}


def _chosen(texts: Sequence[str], which: NDArray[Any]) -> pa.Array:
    return pa.array(texts, pa.string()).take(pa.array(which))
