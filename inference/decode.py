"""Request records → columns. One generated msgspec type per model checks types and categories in C while it parses, and ranges are checked
on columns; only a record that this refuses is looked at again, slowly, to say what is wrong with it (`inference.explain`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, starmap
from operator import attrgetter
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta
from numpy.typing import NDArray

from features.columns import Columns
from inference.admit import Admitted
from inference.decode_arrow import ArrowDecoder, empty
from inference.explain import I64_MAX, REQUEST_ID_CHARS, explain
from inference.numbers import Ranges
from schemas.errors import Rejection
from schemas.spec import BoolFeature, CategoryFeature, Feature, FloatFeature, IntFeature, ModelSpec

RowFormat: TypeAlias = Literal["json", "msgpack"]

PIECE_NUMBERS: Final = 1 << 15
"""Numbers that are parsed before they are packed. As objects of Python they take four times their bytes: of wide rows a whole micro-batch would be
33 MB of them, written and read through no cache, in memory that is taken from the system and given back each time."""

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
        # No record is both bare and an envelope: `features` is no feature's name, and an envelope needs it.
        self._forms: dict[RowFormat, list[Callable[[bytes], Any]]] = {
            "json": [msgspec.json.Decoder(features).decode, msgspec.json.Decoder(envelope).decode],
            "msgpack": [msgspec.msgpack.Decoder(features).decode, msgspec.msgpack.Decoder(envelope).decode],
        }
        self._numbers = _getter(fields[: len(spec.numbers)], alone=not spec.texts)
        self._texts = _getter(fields[len(spec.numbers) :], alone=not spec.numbers)
        self._packed = struct.Struct(f"{len(spec.numbers)}d")
        self._piece_rows = max(1, PIECE_NUMBERS // max(1, len(spec.numbers)))
        self._ranges = Ranges.of(spec)
        self._arrow = ArrowDecoder(spec, self._ranges)

    def decode(
        self, values: Sequence[bytes | None], refused: Mapping[int, Rejection], encoding: RowFormat = "json"
    ) -> Decoded:
        """The rows in `values`, a row each, without the records at the indices that were `refused` already."""
        if len(values) <= self._piece_rows:
            return self._decode(values, refused, encoding)
        columns, accepted = [], []
        rejections: dict[int, Rejection] = {}
        request_ids: dict[int, str] = {}
        for start in range(0, len(values), self._piece_rows):
            piece = values[start : start + self._piece_rows]
            before = (
                {i: refused[start + i] for i in range(len(piece)) if start + i in refused} if refused else {}
            )
            found = self._decode(piece, before, encoding)
            columns.append(found.columns)
            accepted.append(found.accepted + start)
            rejections |= {start + i: rejection for i, rejection in found.rejections.items()}
            request_ids |= {start + i: text for i, text in found.request_ids.items()}
        return Decoded(Columns.concat(columns), np.concatenate(accepted), rejections, request_ids)

    def _decode(
        self, values: Sequence[bytes | None], refused: Mapping[int, Rejection], encoding: RowFormat
    ) -> Decoded:
        rejections = dict(refused)
        rows = self._all_alike(values, self._forms[encoding]) if not refused else None
        if rows is None:
            rows = self._one_by_one(values, rejections, encoding)
        accepted = np.arange(len(values))
        if rejections:
            accepted = np.delete(accepted, list(rejections))
        request_ids: dict[int, str] = {}
        envelope_type: type[Any] = self._envelope_type
        for place, row in enumerate(rows) if envelope_type in set(map(type, rows)) else ():
            if type(row) is envelope_type:
                if row.request_id:
                    request_ids[int(accepted[place])] = row.request_id
                rows[place] = row.features
        numbers = self._floats(rows)
        outside = self._ranges.outside(numbers)
        if len(outside):
            for place in outside.tolist():
                index = int(accepted[place])
                rejections[index] = explain(
                    self._spec, values[index] or b"", "not a number that can be served", encoding
                )
                rows[place] = None
            rows = [row for row in rows if row is not None]
            accepted, numbers = np.delete(accepted, outside), np.delete(numbers, outside, axis=0)
        texts = ["" if text is None else text for text in chain.from_iterable(self._texts(rows))]
        columns = Columns(numbers.astype(np.float32), pa.array(texts, pa.string()))
        return Decoded(columns, accepted, rejections, request_ids)

    def _floats(self, rows: list[Any]) -> NDArray[np.float64]:
        """The numbers of all rows: [rows, width]. Packed they are in half the time that numpy takes to go through them."""
        try:
            flat = np.frombuffer(b"".join(starmap(self._packed.pack, self._numbers(rows))), np.float64)
        except struct.error:  # a None: numpy reads it as NaN from a list only
            flat = np.array(list(chain.from_iterable(self._numbers(rows))), np.float64)
        return flat.reshape(len(rows), len(self._spec.numbers))

    def decode_all(self, admitted: Admitted) -> Decoded:
        """The rows of a micro-batch; indices count its rows."""
        if not admitted.formats:
            found = self.decode(admitted.values, admitted.rejections)
            found.request_ids.update(admitted.request_ids | found.request_ids)
            return found
        rows, spec = admitted.rows, self._spec
        rejections = rows.spread(admitted.rejections)
        request_ids = {
            int(rows.first[index]): text
            for index, text in admitted.request_ids.items()
            if index not in admitted.batches  # one id for many rows says nothing
        }
        columns, accepted = [], []
        for encoding in ("json", "msgpack"):
            mine = [
                i
                for i in range(len(admitted.values))
                if admitted.formats.get(i, "json") == encoding and i not in admitted.rejections
            ]
            if mine:
                found = self.decode([admitted.values[i] for i in mine], {}, encoding)
                places = rows.first[mine]
                columns.append(found.columns)
                accepted.append(places[found.accepted])
                rejections |= {int(places[i]): rejection for i, rejection in found.rejections.items()}
                request_ids |= {int(places[i]): text for i, text in found.request_ids.items()}
        for index, batch in admitted.batches.items():
            if index in admitted.rejections:
                continue
            start = int(rows.first[index])
            part, served, refused, given = self._arrow.decode(batch)
            columns.append(part)
            accepted.append(served + start)
            rejections |= {start + row: rejection for row, rejection in refused.items()}
            request_ids |= {start + row: text for row, text in given.items()}
        if not columns:
            return Decoded(empty(spec), np.zeros(0, np.int64), rejections, request_ids)
        every, order = Columns.concat(columns), np.concatenate(accepted)
        if (np.diff(order) < 0).any():
            ascending = np.argsort(order)
            every, order = every.take(ascending), order[ascending]
        return Decoded(every, order, rejections, request_ids)

    def _all_alike(
        self, values: Sequence[bytes | None], forms: list[Callable[[bytes], Any]]
    ) -> list[Any] | None:
        """All rows, if all are good and of one form; None otherwise. Which form comes is known after the first batch."""
        for form in forms:
            try:
                rows = [form(value) for value in values]  # type: ignore[arg-type]  # a None raises TypeError
            except (*_UNPARSABLE, TypeError):
                continue
            if form is not forms[0]:
                forms.reverse()
            return rows
        return None

    def _one_by_one(
        self, values: Sequence[bytes | None], rejections: dict[int, Rejection], encoding: RowFormat
    ) -> list[Any]:
        """The rows that can be decoded; adds a rejection for each record that cannot."""
        rows = []
        for index, value in enumerate(values):
            if index in rejections:
                continue
            try:
                rows.append(_row(value or b"", self._forms[encoding]))
            except _UNPARSABLE as error:
                rejections[index] = explain(self._spec, value or b"", str(error), encoding)
        return rows


def _row(value: bytes, forms: list[Callable[[bytes], Any]]) -> Any:
    first, second = forms
    try:
        return first(value)
    except _UNPARSABLE:
        return second(value)


def _field(field: str, feature: Feature) -> tuple[str, Any] | tuple[str, Any, Any]:
    """A struct field that admits exactly what the feature admits."""
    kind: Any
    if isinstance(feature, FloatFeature):
        kind = float  # its range is checked on columns: a quarter of the time in wide rows
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


def _getter(fields: list[str], *, alone: bool) -> Callable[[list[Any]], Iterable[tuple[Any, ...]]]:
    """The values of `fields` (`alone`: a row has no others) of each row."""
    if not fields:
        return lambda rows: ()
    if alone:
        return lambda rows: map(msgspec.structs.astuple, rows)
    get = attrgetter(*fields)
    if len(fields) == 1:
        return lambda rows: zip(map(get, rows), strict=True)
    return lambda rows: map(get, rows)
