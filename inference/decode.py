"""Request records → columns. One generated msgspec type per model checks types, ranges and categories in C while it parses;

only a record that this refuses is looked at again, slowly, to say what is wrong with it (`inference.explain`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta
from numpy.typing import NDArray

from features.columns import Columns
from inference.explain import F32_MAX, I64_MAX, REQUEST_ID_CHARS, explain
from schemas.errors import Rejection
from schemas.spec import BoolFeature, CategoryFeature, Feature, FloatFeature, IntFeature, ModelSpec

_ENVELOPE_KEY: Final = b'"features"'
_UNPARSABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, eq=False)
class Decoded:
    """A micro-batch after decoding. Indices count the records that were given."""

    columns: Columns
    """The rows that can be served."""
    accepted: NDArray[np.int64]
    """Index of the record of each row of `columns`."""
    rejections: dict[int, Rejection]
    """Index of each other record → why."""
    request_ids: dict[int, str]
    """Index → the envelope's request id, where one was given."""


class Decoder:
    """Decodes the requests of one model."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        names = [*spec.numbers, *spec.texts]
        # Fields are f0, f1, … so that a feature may have the name of a Python keyword.
        fields = [f"f{index}" for index in range(len(names))]
        features = msgspec.defstruct(
            "Features",
            [_field(field, spec.features[name]) for field, name in zip(fields, names, strict=True)],
            rename=dict(zip(fields, names, strict=True)),
            forbid_unknown_fields=True, kw_only=True, gc=False,
        )  # fmt: skip
        envelope = msgspec.defstruct(
            "Envelope",
            [
                ("features", features),
                ("request_id", Annotated[str, Meta(max_length=REQUEST_ID_CHARS)], ""),
                ("model", Literal["", spec.name], ""),
            ],
            forbid_unknown_fields=True, kw_only=True, gc=False,
        )  # fmt: skip
        self._envelope_type: type[Any] = envelope
        self._bare: Callable[[bytes], Any] = msgspec.json.Decoder(features).decode
        self._envelope: Callable[[bytes], Any] = msgspec.json.Decoder(envelope).decode
        self._numbers = _getter(fields[: len(spec.numbers)])
        self._texts = _getter(fields[len(spec.numbers) :])

    def decode(self, values: Sequence[bytes | None], refused: Mapping[int, Rejection]) -> Decoded:
        """The rows in `values`, without the records at the indices that were `refused` already."""
        rejections = dict(refused)
        request_ids: dict[int, str] = {}
        bare, envelope = self._bare, self._envelope
        try:
            if refused:
                raise _Mixed
            rows = [bare(value) if _ENVELOPE_KEY not in value else envelope(value) for value in values]  # type: ignore[operator,arg-type]  # a None raises TypeError
        except (*_UNPARSABLE, TypeError, _Mixed):
            rows = self._one_by_one(values, rejections)
        envelope_type: type[Any] = self._envelope_type
        accepted = np.arange(len(values))
        if rejections:
            accepted = np.delete(accepted, list(rejections))
        for place, row in enumerate(rows):
            if type(row) is envelope_type:
                if row.request_id:
                    request_ids[int(accepted[place])] = row.request_id
                rows[place] = row.features
        return Decoded(self._columns(rows), accepted, rejections, request_ids)

    def _one_by_one(self, values: Sequence[bytes | None], rejections: dict[int, Rejection]) -> list[Any]:
        """The rows that can be decoded; adds a rejection for each record that cannot."""
        rows = []
        for index, value in enumerate(values):
            if index in rejections:
                continue
            try:
                rows.append(self._row(value or b""))
            except _UNPARSABLE as error:
                rejections[index] = explain(self._spec, value or b"", str(error))
        return rows

    def _row(self, value: bytes) -> Any:
        if _ENVELOPE_KEY not in value:
            return self._bare(value)
        try:
            return self._envelope(value)
        except _UNPARSABLE:
            # "features" may also be a value of a bare request.
            return self._bare(value)

    def _columns(self, rows: list[Any]) -> Columns:
        width = len(self._spec.numbers)
        numbers = _floats(self._numbers, rows, width).astype(np.float32).reshape(len(rows), width)
        texts = ["" if text is None else text for text in self._texts(rows)]
        return Columns(numbers, pa.array(texts, pa.string()))


class _Mixed(Exception):
    """Some records are refused already: decode one by one."""


def _field(field: str, feature: Feature) -> tuple[str, Any] | tuple[str, Any, Any]:
    """A struct field that admits exactly what the feature admits."""
    kind: Any
    if isinstance(feature, FloatFeature):
        low = -F32_MAX if feature.min is None else feature.min
        kind = Annotated[float, Meta(ge=low, le=F32_MAX if feature.max is None else feature.max)]
    elif isinstance(feature, IntFeature):
        low = -I64_MAX if feature.min is None else feature.min
        kind = Annotated[int, Meta(ge=low, le=I64_MAX if feature.max is None else feature.max)]
    elif isinstance(feature, BoolFeature):
        kind = bool
    elif isinstance(feature, CategoryFeature) and feature.unknown == "reject":
        kind = Literal[feature.values]
    else:
        kind = str
    if feature.missing == "reject":
        return (field, kind)
    return (field, kind | None, None)


def _getter(fields: list[str]) -> Callable[[list[Any]], Iterable[Any]]:
    """The values of `fields` of all rows, row after row."""
    if not fields:
        return lambda rows: ()
    get = attrgetter(*fields)
    if len(fields) == 1:
        return lambda rows: map(get, rows)
    return lambda rows: chain.from_iterable(map(get, rows))


def _floats(get: Callable[[list[Any]], Iterable[Any]], rows: list[Any], width: int) -> NDArray[np.float64]:
    try:
        return np.fromiter(get(rows), np.float64, len(rows) * width)
    except TypeError:  # a None: numpy reads it as NaN from a list only
        return np.array(list(get(rows)), np.float64)
