"""An Arrow request → columns: one record batch, a column a feature, any number of rows.

What a column may be (`docs/events.md` has the table): a float feature takes integers and floats of any width; an int feature the same, if
every value is whole; a bool feature booleans; a category or a text strings, plain or dictionary-encoded. A null, a NaN in a number that
may be missing, and a column that is not there are missing values. A column that no feature has, or of another type, refuses all rows;
a value refuses its row.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.columns import Columns
from inference.explain import REQUEST_ID_CHARS, problem
from inference.numbers import Ranges
from schemas.errors import Rejection
from schemas.formats import ARROW_UNPACKED_BYTES, REQUEST_ID
from schemas.spec import BoolFeature, CategoryFeature, IntFeature, ModelSpec, Numeric

_NUMBERS: Final = "numbers (any Arrow integer or float)"


class ArrowDecoder:
    """Decodes the Arrow requests of one model."""

    def __init__(self, spec: ModelSpec, ranges: Ranges) -> None:
        self._spec = spec
        self._ranges = ranges
        self._numbers = list(spec.numbers)
        self._whole = any(isinstance(feature, IntFeature) for feature in spec.features.values())
        self._checked: pa.Schema | None = None
        """The newest schema that fits: producers hardly ever change theirs, and looking through hundreds of columns takes time."""
        self._at_once = False
        """Whether all its numbers are floats of one width, which are read at once."""
        self._must_select = False
        """Whether it has other columns too, or in another order."""
        self._dictionaries: list[str] = []
        """Its dictionary-encoded texts."""

    def decode(
        self, batch: pa.RecordBatch
    ) -> tuple[Columns, NDArray[np.int64], dict[int, Rejection], dict[int, str]]:
        """Columns of the rows that can be served, their places in `batch`, why each other row cannot be, and request ids by row."""
        spec, n = self._spec, batch.num_rows
        try:
            _check_values(batch)
            if self._checked is None or not batch.schema.equals(self._checked):
                self._check(batch.schema)
            _check_repeated(batch, self._dictionaries)
        except Rejection as rejection:
            return empty(spec), np.zeros(0, np.int64), dict.fromkeys(range(n), rejection.bare()), {}
        given = _request_ids(batch)
        numbers, bad = self._read_numbers(batch)
        bad[self._ranges.outside(numbers)] = True
        texts = [_texts(batch, name, n) for name in spec.texts]
        for name, column in zip(spec.texts, texts, strict=True):
            bad |= _bad_texts(spec, name, column)
        rejections = {row: _explain(spec, batch, row) for row in np.flatnonzero(bad).tolist()}
        limit_bytes = spec.serve.max_request_bytes
        for row, size_bytes in _long_texts(texts, limit_bytes).items():
            rejections[row] = Rejection(
                "oversized", "", f"at most {limit_bytes} bytes of text", f"found {size_bytes} bytes"
            )
        for row, text in given.items():
            if len(text) > REQUEST_ID_CHARS:
                rejections[row] = Rejection(
                    "bad_envelope", REQUEST_ID, f"a text of at most {REQUEST_ID_CHARS} characters",
                    f"found {len(text)} characters",
                )  # fmt: skip
                given[row] = text[:REQUEST_ID_CHARS]
        with np.errstate(over="ignore"):  # in rows that are refused
            columns = Columns(numbers.astype(np.float32, copy=False), _interleaved(texts, n))
        accepted = np.arange(n)
        if rejections:
            accepted = np.delete(accepted, list(rejections))
            columns = columns.take(accepted)
        return columns, accepted, rejections, given

    def _check(self, schema: pa.Schema) -> None:
        """Raises `Rejection` for a schema that does not fit; keeps what was found out of one that does."""
        _check_schema(self._spec, schema)
        names = schema.names
        self._checked = schema
        self._at_once = not self._whole and _all_of_one_float(schema, self._numbers)
        self._must_select = names != self._numbers
        self._dictionaries = [
            name
            for name, kind in zip(names, schema.types, strict=True)
            if pa.types.is_dictionary(kind) and _is_text(kind)
        ]

    def _read_numbers(self, batch: pa.RecordBatch) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Numeric features [rows, width], missing as NaN; and the rows in which a whole number is none."""
        if self._at_once:
            columns = batch.select(self._numbers) if self._must_select else batch
            return columns.to_tensor(null_to_nan=True).to_numpy(), np.zeros(batch.num_rows, bool)
        return _numbers(self._spec, batch)


def _all_of_one_float(schema: pa.Schema, names: list[str]) -> bool:
    types = dict(zip(schema.names, schema.types, strict=True))
    return {types.get(name) for name in names} in ({pa.float32()}, {pa.float64()})


def empty(spec: ModelSpec) -> Columns:
    """No rows."""
    return Columns(np.zeros((0, len(spec.numbers)), np.float32), pa.array([], pa.string()))


def _check_values(batch: pa.RecordBatch) -> None:
    try:
        # A stranger's buffers: offsets beyond their end must not be followed, and texts must be UTF-8.
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        raise Rejection("undecodable", "", "a valid Arrow record batch", str(error)[:200]) from None


def _check_schema(spec: ModelSpec, schema: pa.Schema) -> None:
    """Raises `Rejection` for a column that makes every row wrong."""
    names = schema.names
    if len(set(names)) != len(names):
        raise Rejection("undecodable", "", "each column once", "found a column twice")
    for name, kind in zip(names, schema.types, strict=True):
        if name == REQUEST_ID:
            if not (_is_text(kind) or pa.types.is_null(kind)):
                raise Rejection("bad_envelope", REQUEST_ID, "a column of texts", f"found {kind}")
            continue
        feature = spec.features.get(name)
        if feature is None:
            raise Rejection(
                "unknown_field", name[:100], f"one of {', '.join(spec.features)}", "unknown column"
            )
        if pa.types.is_null(kind):
            continue
        if isinstance(feature, BoolFeature):
            fits, wanted = pa.types.is_boolean(kind), "booleans"
        elif isinstance(feature, Numeric):
            fits, wanted = pa.types.is_integer(kind) or pa.types.is_floating(kind), _NUMBERS
        else:
            fits, wanted = _is_text(kind), "texts"
        if not fits:
            raise Rejection("wrong_type", name, f"a column of {wanted}", f"found {kind}"[:200])


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _numbers(spec: ModelSpec, batch: pa.RecordBatch) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Numeric features [rows, width], missing as NaN; and the rows in which a whole number is none."""
    n = batch.num_rows
    bad = np.zeros(n, bool)
    places = {name: place for place, name in enumerate(batch.schema.names)}
    numbers = np.full((n, len(spec.numbers)), np.nan)
    for index, name in enumerate(spec.numbers):
        if name not in places:
            continue
        column = batch.column(places[name])
        if pa.types.is_null(column.type):
            continue
        if not pa.types.is_floating(column.type):
            if pa.types.is_boolean(column.type):
                column = column.cast(pa.uint8())
            column = column.cast(pa.float64(), safe=False)
        values = column.to_numpy(zero_copy_only=False)
        if isinstance(spec.features[name], IntFeature):
            with np.errstate(invalid="ignore"):
                bad |= ~np.isnan(values) & (np.floor(values) != values)
        numbers[:, index] = values
    return numbers, bad


def _check_repeated(batch: pa.RecordBatch, names: list[str]) -> None:
    """Refuse dictionaries whose texts would take too much room once each row has its own."""
    for name in names:
        column = batch.column(name)
        lengths = pc.binary_length(column.dictionary).take(column.indices)
        total = pc.sum(lengths).as_py() or 0
        if total > ARROW_UNPACKED_BYTES:
            raise Rejection(
                "oversized", name, f"at most {ARROW_UNPACKED_BYTES} bytes of text", f"found {total} bytes"
            )


def _texts(batch: pa.RecordBatch, name: str, n: int) -> pa.StringArray:
    """A text column; nulls stay."""
    place = batch.schema.get_field_index(name)
    if place < 0:
        return pa.nulls(n, pa.string())
    return batch.column(place).cast(pa.string())


def _long_texts(columns: list[pa.StringArray], limit_bytes: int) -> dict[int, int]:
    """Row → bytes of its texts, where these are more than a request in a record of its own may have."""
    if sum(column.nbytes for column in columns) <= limit_bytes:
        return {}
    lengths = [pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False) for column in columns]
    sizes = np.stack(lengths).sum(axis=0, dtype=np.int64)
    return {row: int(sizes[row]) for row in np.flatnonzero(sizes > limit_bytes).tolist()}


def _bad_texts(spec: ModelSpec, name: str, column: pa.StringArray) -> NDArray[np.bool_]:
    feature = spec.features[name]
    bad = np.zeros(len(column), bool)
    if column.null_count and feature.missing == "reject":
        bad |= column.is_null().to_numpy(zero_copy_only=False)
    if isinstance(feature, CategoryFeature) and feature.unknown == "reject":
        known = pc.is_in(column, value_set=pa.array(feature.values, pa.string()))
        bad |= pc.and_(column.is_valid(), pc.invert(known)).to_numpy(zero_copy_only=False)
    return bad


def _interleaved(columns: list[pa.StringArray], n: int) -> pa.StringArray:
    """Text columns row after row, missing as ""."""
    filled = [column.fill_null("") for column in columns]
    if len(filled) <= 1:
        return filled[0] if filled else pa.array([], pa.string())
    order = np.arange(n * len(filled)).reshape(len(filled), n).T.ravel()
    return pa.concat_arrays(filled).take(pa.array(order))


def _request_ids(batch: pa.RecordBatch) -> dict[int, str]:
    place = batch.schema.get_field_index(REQUEST_ID)
    if place < 0 or pa.types.is_null(batch.column(place).type):
        return {}
    texts = batch.column(place).cast(pa.string()).to_pylist()
    return {row: text for row, text in enumerate(texts) if text}


def _explain(spec: ModelSpec, batch: pa.RecordBatch, row: int) -> Rejection:
    """Why a row cannot be served, in the words that a JSON request would get."""
    record: dict[str, Any] = {}
    for name, feature in spec.features.items():
        place = batch.schema.get_field_index(name)
        value = batch.column(place)[row].as_py() if place >= 0 else None
        if isinstance(value, float):
            if math.isnan(value) and feature.missing != "reject":
                value = None
            elif isinstance(feature, IntFeature) and value.is_integer():
                value = int(value)
        record[name] = value
    return problem(spec, record) or Rejection(
        "wrong_type", "", "a row of features", "a row that fits no column"
    )
