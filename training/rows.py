"""Labelled rows: what a model is fitted on, in memory and as a hashed Parquet snapshot in the artifact store."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.columns import Columns
from schemas.arrow import F32S, STRINGS
from schemas.errors import ArtifactError
from schemas.spec import ModelSpec

LABELS: Final = np.dtype(
    [
        ("id_high", "u8"),
        ("id_low", "u8"),
        ("requested_ms", "i8"),
        ("joined_ms", "i8"),
        ("target", "f8"),
        ("answered", "i4"),
        ("loss", "f4"),
    ]
)
"""One row's label. `id_*` are the halves of the prediction id (0 for a file's row, whose times are 0 too); `target` is the index of
the class or the value of a regression; `answered` and `loss` are what the live arm said before the label was known (-1 and NaN for
a file's row)."""
SNAPSHOTS: Final = "snapshots"
_SCHEMA: Final = pa.schema(
    [pa.field("numbers", F32S, nullable=False), pa.field("texts", STRINGS, nullable=False)]
    + [
        pa.field(name, pa.from_numpy_dtype(LABELS[name]), nullable=False)
        for name in LABELS.names or ()
        if name != "target"
    ]
    + [pa.field("target", pa.float64(), nullable=False)]
)


class Rows:
    """Labelled rows, oldest first: features and labels of the same length."""

    def __init__(self, columns: Columns, labels: NDArray[np.void]) -> None:
        if columns.rows != len(labels):
            raise ValueError(f"expected as many labels as rows: {columns.rows} rows, {len(labels)} labels")
        self.columns = columns
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def targets(self) -> NDArray[np.float64]:
        """Index of the class, or the value of a regression, float64 [rows]."""
        return self.labels["target"]

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Rows:
        """The rows at `indices`, in that order."""
        return Rows(self.columns.take(indices), self.labels[np.asarray(indices, dtype=np.int64)])

    @property
    def newest_prediction_id(self) -> str:
        """The prediction whose label was joined last, "" if no row has one."""
        labelled = self.labels[self.labels["joined_ms"] > 0]
        if not len(labelled):
            return ""
        last = labelled[np.lexsort((labelled["id_low"], labelled["id_high"], labelled["joined_ms"]))[-1]]
        return str(uuid.UUID(int=int(last["id_high"]) << 64 | int(last["id_low"])))

    @classmethod
    def concat(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of `parts` (at least one), one after the other."""
        return cls(
            Columns.concat([part.columns for part in parts]), np.concatenate([part.labels for part in parts])
        )

    @classmethod
    def from_file(cls, columns: Columns, targets: NDArray[np.float64]) -> Rows:
        """Rows that no request ever asked for: a training file's, in the file's order."""
        labels = np.zeros(columns.rows, LABELS)
        labels["target"], labels["answered"], labels["loss"] = targets, -1, np.nan
        return cls(columns, labels)


def no_columns(spec: ModelSpec) -> Columns:
    """No rows of `spec`."""
    return Columns(np.zeros((0, len(spec.numbers)), np.float32), pa.array([], pa.string()))


def write_snapshot(artifacts_dir: Path, model: str, rows: Rows) -> str:
    """Write `<artifacts_dir>/<model>/snapshots/<sha256>.parquet`, whole or not at all; return the sha256."""
    numbers, texts = rows.columns.as_lists()
    arrays = {"numbers": numbers, "texts": texts} | {name: rows.labels[name] for name in LABELS.names or ()}
    table = pa.Table.from_arrays(
        [pa.array(arrays[field.name], field.type) for field in _SCHEMA], schema=_SCHEMA
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    sha256 = hashlib.sha256(data).hexdigest()
    path = _path(artifacts_dir, model, sha256)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{sha256}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    return sha256


def read_snapshot(artifacts_dir: Path, spec: ModelSpec, sha256: str) -> Rows:
    """The rows of a snapshot, its hash checked.

    Raises:
        ArtifactError: missing, altered, or made for other features.
    """
    path = _path(artifacts_dir, spec.name, sha256)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(
            f"{spec.name}: snapshot {sha256[:12]}… is not in the store {artifacts_dir}"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ArtifactError(f"{path}: wrong hash: expected {sha256[:12]}…, found {found[:12]}…")
    table = pq.read_table(pa.BufferReader(data)).combine_chunks()
    try:
        columns = Columns.from_lists(_array(table["numbers"]), _array(table["texts"]), spec)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from None
    labels = np.zeros(table.num_rows, LABELS)
    for name in LABELS.names or ():
        labels[name] = table[name].to_numpy()
    return Rows(columns, labels)


def _path(artifacts_dir: Path, model: str, sha256: str) -> Path:
    return artifacts_dir / model / SNAPSHOTS / f"{sha256}.parquet"


def _array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
