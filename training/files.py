"""Training files: CSV, JSON lines or Parquet with a column per feature and one for the label, checked as the gateway checks requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.columns import Columns
from schemas.errors import UserError
from schemas.spec import (
    BoolFeature,
    CategoryFeature,
    Feature,
    FloatFeature,
    IntFeature,
    ModelSpec,
    Numeric,
    TextFeature,
)
from training.rows import Rows

_SHOWN_ROWS: Final = 5
_SUFFIXES: Final = {
    ".csv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
_ANY_NUMBER: Final = FloatFeature()
_BOOLS: Final = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fault in one column."""

    column: str
    reason: str
    """One of `schemas.requests.Reason`."""
    expected: str
    count: int
    first_rows: list[int]
    """Numbers of the first rows concerned, the first row of data being 1."""

    def __str__(self) -> str:
        rows = ", ".join(str(row) for row in self.first_rows) + (
            ", …" if self.count > len(self.first_rows) else ""
        )
        return f"{self.column}: {self.reason} in {self.count} rows ({rows}); expected {self.expected}"


class Loaded(NamedTuple):
    """What a file holds."""

    rows: Rows
    """The rows without a fault, in the file's order."""
    findings: list[Finding]
    ignored: list[str]
    """Columns that are neither a feature nor the label."""
    read: int
    """Rows in the file."""


def load_file(path: Path, spec: ModelSpec, label: str = "label") -> Loaded:
    """The rows of `path` and what is wrong with the others.

    Raises:
        UserError: not a file that can be read, or a column is missing: one line.
    """
    table = _read(path)
    wanted = [*spec.features, label]
    missing = [name for name in wanted if name not in table]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; expected {', '.join(wanted)}; found {', '.join(table) or 'none'}"
        )
    read = len(table[label])
    bad = np.zeros(read, dtype=bool)
    findings: list[Finding] = []

    def note(column: str, faults: dict[tuple[str, str], list[int]]) -> None:
        for (reason, expected), rows in sorted(faults.items()):
            bad[rows] = True
            first = [row + 1 for row in rows[:_SHOWN_ROWS]]
            findings.append(
                Finding(column=column, reason=reason, expected=expected, count=len(rows), first_rows=first)
            )

    numbers = np.full((read, len(spec.numbers)), np.nan, np.float32)
    texts = np.empty((read, len(spec.texts)), dtype=object)
    for name, feature in spec.features.items():
        if isinstance(feature, Numeric):
            numbers[:, spec.numbers.index(name)], faults = _numbers(table[name], feature)
        else:
            texts[:, spec.texts.index(name)], faults = _texts(table[name], feature)
        note(name, faults)
    targets, faults = _targets(table[label], spec)
    note(label, faults)
    good = np.flatnonzero(~bad)
    columns = Columns(numbers[good], pa.array(texts[good].ravel().tolist(), pa.string()))
    ignored = [name for name in table if name not in wanted]
    return Loaded(Rows.from_file(columns, targets[good]), findings, ignored, read)


def _read(path: Path) -> dict[str, Sequence[Any]]:
    """The columns of the file by name. A CSV's values are texts, an empty one is None."""
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: expected a name that ends in {', '.join(_SUFFIXES)}")
    try:
        if kind == "parquet":
            return {name: column.to_pylist() for name, column in _named(pq.read_table(path))}
        if kind == "csv":
            return _read_csv(path)
        return _read_json_lines(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as {kind}: {' '.join(str(error).split())}") from None


def _read_csv(path: Path) -> dict[str, Sequence[Any]]:
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parse) as head:
        names = head.schema.names
    convert = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in names},
        strings_can_be_null=True,
        null_values=[""],
        quoted_strings_can_be_null=False,
    )
    table = pa.csv.read_csv(path, parse_options=parse, convert_options=convert)
    return {name: column.to_pylist() for name, column in _named(table)}


def _named(table: pa.Table) -> list[tuple[str, pa.ChunkedArray]]:
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"the header names {', '.join(twice)} more than once")
    return list(zip(names, table.columns, strict=True))


def _read_json_lines(path: Path) -> dict[str, Sequence[Any]]:
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise UserError(f"{path}: line {number}: expected one JSON object: {error}") from None
            rows.append(row)
            names.update(dict.fromkeys(row))
    return {name: [row.get(name) for row in rows] for name in names}


class _Faults(dict[tuple[str, str], list[int]]):
    """(reason, expected) → rows."""

    def add(self, row: int, reason: str, expected: str) -> None:
        self.setdefault((reason, expected), []).append(row)


def _numbers(values: Sequence[Any], feature: Feature) -> tuple[NDArray[np.float32], _Faults]:
    """float32 [rows] with NaN for what is missing or at fault."""
    found, faults = np.full(len(values), np.nan, np.float64), _Faults()
    kind = (
        "true or false"
        if isinstance(feature, BoolFeature)
        else "a whole number"
        if isinstance(feature, IntFeature)
        else "a number"
    )
    for row, value in enumerate(values):
        if value is None:
            if feature.missing == "reject":
                faults.add(row, "missing_field", kind)
            continue
        number = _as_number(value, feature)
        if number is None:
            faults.add(row, "wrong_type", kind)
        elif not np.isfinite(number) or abs(number) > np.finfo(np.float32).max:
            faults.add(row, "not_finite", "a finite number")
        else:
            found[row] = number
    if not isinstance(feature, BoolFeature | CategoryFeature | TextFeature):
        low = -np.inf if feature.min is None else feature.min
        high = np.inf if feature.max is None else feature.max
        for place in np.flatnonzero((found < low) | (found > high)):
            faults.add(int(place), "out_of_range", f"{feature.min} to {feature.max}")
    return found.astype(np.float32), faults


def _as_number(value: Any, feature: Feature) -> float | None:
    """The number that `value` stands for, None if it is none of the feature's type."""
    if isinstance(feature, BoolFeature):
        if isinstance(value, bool):
            return float(value)
        return _BOOLS.get(value.strip().lower()) if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return (
        None if isinstance(feature, IntFeature) and np.isfinite(number) and number != int(number) else number
    )


def _texts(values: Sequence[Any], feature: Feature) -> tuple[list[str], _Faults]:
    """Texts with "" for what is missing or at fault."""
    found, faults = [], _Faults()
    allowed = (
        set(feature.values) if isinstance(feature, CategoryFeature) and feature.unknown == "reject" else None
    )
    for row, value in enumerate(values):
        text = value if isinstance(value, str) else ""
        if value is None:
            if feature.missing == "reject":
                faults.add(row, "missing_field", "a text")
        elif not isinstance(value, str):
            faults.add(row, "wrong_type", "a text")
        elif allowed is not None and value not in allowed:
            faults.add(row, "unknown_category", "one of " + ", ".join(sorted(allowed)))
        found.append(text)
    return found, faults


def _targets(values: Sequence[Any], spec: ModelSpec) -> tuple[NDArray[np.float64], _Faults]:
    """Index of the class, or the value; 0 for what is at fault."""
    found, faults = np.zeros(len(values), np.float64), _Faults()
    places = {name: float(place) for place, name in enumerate(spec.classes)}
    regression = spec.task == "regression"
    expected = "a finite number" if regression else "one of " + ", ".join(spec.classes)
    for row, value in enumerate(values):
        if value is None:
            faults.add(row, "missing_field", expected)
        elif regression:
            number = None if isinstance(value, bool) else _as_number(value, _ANY_NUMBER)
            if number is None or not np.isfinite(number):
                faults.add(row, "wrong_type", expected)
            else:
                found[row] = number
        elif str(value) in places:
            found[row] = places[str(value)]
        else:
            faults.add(row, "unknown_category", expected)
    return found, faults
