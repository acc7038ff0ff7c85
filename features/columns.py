"""A micro-batch of feature rows as columns, before encoding: what the gateway decodes and what an observation keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.arrow import F32S, STRINGS
from schemas.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Columns:
    """Rows of features in the spec's order. Not copied and not to be written to."""

    numbers: NDArray[np.float32]
    """float32 [rows, len(spec.numbers)]; NaN is missing; a bool is 1 or 0."""
    texts: pa.StringArray
    """[rows * len(spec.texts)], row after row; "" is missing; no nulls."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.numbers)

    def text(self, index: int) -> pa.StringArray:
        """The text column at `index` in `spec.texts`, [rows]."""
        width = self._text_width
        return (
            self.texts if width <= 1 else self.texts.take(pa.array(np.arange(index, len(self.texts), width)))
        )

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Columns:
        """The rows at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        flat = (chosen[:, None] * self._text_width + np.arange(self._text_width)).ravel()
        return Columns(self.numbers[chosen], self.texts.take(pa.array(flat)))

    @classmethod
    def concat(cls, parts: Sequence[Columns]) -> Columns:
        """All rows of `parts` (at least one, of the same spec), one after the other."""
        return cls(
            np.concatenate([part.numbers for part in parts]),
            pa.concat_arrays([part.texts for part in parts]),
        )

    @classmethod
    def from_lists(cls, numbers: pa.ListArray, texts: pa.ListArray, spec: ModelSpec) -> Columns:
        """The rows of an observation's list columns `numbers` and `texts`.

        Raises:
            ValueError: a row's list has not the length that `spec` asks for.
        """
        rows = len(numbers)
        for name, lists, width in (
            ("numbers", numbers, len(spec.numbers)),
            ("texts", texts, len(spec.texts)),
        ):
            if (
                len(lists) != rows
                or not pc.all(
                    pc.equal(pc.list_value_length(lists), pa.scalar(width, pa.int32())), min_count=0
                ).as_py()
            ):
                raise ValueError(
                    f"{name}: expected {rows} lists of {width} values each for model {spec.name!r}"
                )
        flat = numbers.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        return cls(flat.reshape(rows, len(spec.numbers)), texts.flatten())

    def as_lists(self) -> tuple[pa.ListArray, pa.ListArray]:
        """The list columns `numbers` and `texts` of an observation."""
        flat = pa.array(np.ascontiguousarray(self.numbers).reshape(-1), pa.float32())
        return _lists(self.rows, flat, F32S), _lists(self.rows, self.texts, STRINGS)

    @property
    def _text_width(self) -> int:
        return len(self.texts) // self.rows if self.rows else 0


def _lists(rows: int, values: pa.Array, kind: pa.DataType) -> pa.ListArray:
    """`values` cut into `rows` lists of equal length."""
    width = len(values) // rows if rows else 0
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, values, type=kind)
