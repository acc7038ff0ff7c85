"""A scenario: a labelled stream of rows in their real order, cut into what trains version 1 and what is replayed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from schemas.errors import UserError


@dataclass(frozen=True)
class Scenario:
    """All sequences are of one length, in the order of the stream."""

    name: str
    """Also the model's."""
    columns: Mapping[str, Sequence[float] | Sequence[str]]
    """Feature → values."""
    labels: Sequence[str]
    entities: Sequence[str]
    """Key of each row's request."""
    parts: Sequence[str]
    """Which part of the stream each row is of, for the report."""
    first: int
    """So many rows train version 1; the others are replayed."""
    label_delay_rows: int
    """A row's label becomes known when so many later rows have been sent."""

    def __len__(self) -> int:
        return len(self.labels)

    def features(self, row: int) -> dict[str, float | str]:
        """The features of one row."""
        return {name: values[row] for name, values in self.columns.items()}

    def write_training_file(self, path: Path) -> int:
        """Write the first rows with their label as the column `label`, as Parquet or CSV by the suffix; return their number."""
        values = {name: pa.array(column[: self.first]) for name, column in self.columns.items()}
        table = pa.table(values | {"label": pa.array(self.labels[: self.first])})
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(table, path)
        elif path.suffix == ".csv":
            pyarrow.csv.write_csv(table, path)
        else:
            raise UserError(f"{path}: expected a name that ends in .parquet or .csv")
        return self.first


def read_text(path: Path) -> str:
    """The file's text.

    Raises:
        UserError: it is not there.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: not there, expected the data sets in this folder") from None


def sha256(path: Path) -> str:
    """Hash of the file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
