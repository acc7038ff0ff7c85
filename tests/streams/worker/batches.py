"""A model, its artifact, and observations and outcomes of it, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from runtime.artifacts import ArtifactStore
from schemas.arrow import OBSERVATIONS, OUTCOMES
from schemas.artifact import FILES, REFERENCE, Manifest
from schemas.spec import ModelSpec, decode_spec
from stats.reference import references

SPEC = """
name = "drifty"
task = "binary"
classes = ["down", "up"]
module = "model:Drifty"
[features]
a = { type = "float", missing = "mean" }
b = { type = "float" }
kind = { type = "category", values = ["x", "y"], unknown = "other" }
[monitor]
window_sec = 10
drift = { min_rows = 400 }
"""
EPOCH_MS = 1_790_000_000_000


def spec_of(text: str = SPEC) -> ModelSpec:
    return decode_spec(text, "model.toml")


def write_model(models_dir: Path, text: str = SPEC) -> ModelSpec:
    spec = spec_of(text)
    folder = models_dir / spec.name
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(text)
    return spec


@dataclass
class Features:
    numbers: NDArray[np.float32]
    texts: list[list[str]]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.numbers)


def features(rng: np.random.Generator, rows: int, shift: float = 0.0) -> Features:
    """Rows of the model; `shift` moves feature `a` by so many standard deviations."""
    up = rng.beta(2, 2, rows)
    return Features(
        numbers=np.stack([rng.normal(shift, 1, rows), rng.normal(0, 1, rows)], axis=1).astype(np.float32),
        texts=[[kind] for kind in rng.choice(["x", "y"], rows, p=[0.7, 0.3])],
        scores=np.stack([1 - up, up], axis=1).astype(np.float32),
    )


def write_artifact(root: Path, spec: ModelSpec, training: Features, version: str = "1.0") -> str:
    """An artifact with true references of `training`; its other files are empty."""
    flat = pa.array([text for row in training.texts for text in row], pa.string())
    reference = references(spec, training.numbers, flat, training.scores)
    manifest = Manifest(
        model=spec.name, version=version, base="", module=spec.module, module_sha256="", temperature=1.0, tolerance=1e-4,
        seed=0, rows=len(training), created_at_ms=EPOCH_MS, label_from_ms=0, label_to_ms=0, files={},
    )  # fmt: skip
    files = dict.fromkeys(FILES, b"") | {REFERENCE: msgspec.json.encode(reference)}
    return ArtifactStore(root).write(manifest, files)


def observations(
    spec: ModelSpec, rows: Features, *, first_offset: int, at_ms: NDArray[np.int64], version: str = "1.0",
    rejected: Sequence[int] = (), role: str = "live", partition: int = 0,
) -> pa.RecordBatch:  # fmt: skip
    """One micro-batch; `rejected` lists rows that were not served."""
    n = len(rows)
    refused = np.isin(np.arange(n), rejected)
    label = np.where(rows.scores[:, 1] > 0.5, "up", "down")

    def unless(values: Any, otherwise: Any) -> list[Any]:
        return [otherwise if no else value for value, no in zip(values, refused, strict=True)]

    columns: dict[str, Any] = {
        "prediction_id": [(first_offset + i).to_bytes(16) for i in range(n)],
        "request_id": [""] * n,
        "model": [spec.name] * n,
        "entity": ["someone"] * n,
        "role": [role] * n,
        "arm": unless(["champion"] * n, ""),
        "version": unless([version] * n, ""),
        "propensity": np.ones(n, np.float32),
        "route_revision": np.ones(n, np.uint64),
        "topic_id": [b"\0" * 16] * n,
        "partition": np.full(n, partition, np.int32),
        "offset": np.arange(first_offset, first_offset + n),
        "row": np.zeros(n, np.int32),
        "status": unless(["answered"] * n, "rejected"),
        "reason": unless([""] * n, "wrong_type"),
        "requested_at": at_ms,
        "observed_at": at_ms + 7,
        "label": unless(label, ""),
        "score": np.where(refused, np.nan, rows.scores.max(axis=1)).astype(np.float32),
        "scores": unless(rows.scores.tolist(), []),
        "numbers": unless(rows.numbers.tolist(), []),
        "texts": unless(rows.texts, []),
        "segments": unless([[f"kind={row[0]}"] for row in rows.texts], []),
        "infer_ms": np.full(n, 1.5, np.float32),
        "trace_id": [""] * n,
        "attempt": [0] * n,
    }
    return _batch(columns, OBSERVATIONS)


def outcomes(
    spec: ModelSpec, rows: Features, truths: Sequence[str], *, at_ms: NDArray[np.int64], version: str = "1.0",
    revision: int = 0, previous: Sequence[str] = (), role: str = "live",
) -> pa.RecordBatch:  # fmt: skip
    """Labels of `rows`; with `previous`, a revision of them."""
    n = len(rows)
    label = np.where(rows.scores[:, 1] > 0.5, "up", "down")

    def loss(of: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        given = rows.scores[np.arange(n), [spec.classes.index(truth) for truth in of]]
        return -np.log(given), 2 * np.square(1 - given)

    log_loss, brier = loss(truths)
    zeros = np.zeros(n, np.float32)
    previous_loss, previous_brier = loss(previous) if previous else (zeros, zeros)
    columns: dict[str, Any] = {
        "outcome_id": [i.to_bytes(16) for i in range(n)],
        "prediction_id": [i.to_bytes(16) for i in range(n)],
        "model": [spec.name] * n,
        "entity": ["someone"] * n,
        "role": [role] * n,
        "arm": ["champion"] * n,
        "version": [version] * n,
        "feedback_id": [""] * n,
        "revision": np.full(n, revision, np.uint32),
        "truth": list(truths),
        "truth_value": np.full(n, np.nan),
        "label": label,
        "scores": rows.scores.tolist(),
        "correct": (label == np.array(truths)).astype(np.uint8),
        "loss": log_loss,
        "brier": brier,
        "previous_truth": list(previous) or [""] * n,
        "previous_loss": previous_loss,
        "previous_brier": previous_brier,
        "segments": [[f"kind={row[0]}"] for row in rows.texts],
        "requested_at": at_ms,
        "observed_at": at_ms + 7,
        "labeled_at": at_ms + 1000,
        "joined_at": at_ms + 1001,
    }
    return _batch(columns, OUTCOMES)


def _batch(columns: dict[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    rows = len(columns["prediction_id"])
    arrays = []
    for field in schema:
        # What the worker does not read may be anything.
        values = columns[field.name] if field.name in columns else [_blank(field.type)] * rows
        if pa.types.is_timestamp(field.type):
            arrays.append(pa.array(np.asarray(values, dtype=np.int64)).cast(field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _blank(kind: pa.DataType) -> Any:
    if pa.types.is_fixed_size_binary(kind):
        return b"\0" * kind.byte_width
    return [] if pa.types.is_list(kind) else "" if pa.types.is_string(kind) else 0
