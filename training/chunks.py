"""Columns that grow: what is appended is seldom copied, and any rows can be gathered."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.columns import Columns
from schemas.spec import ModelSpec
from training.rows import no_columns


class Chunks:
    """Rows of one model, numbered from 0 in the order of their appending."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._parts: list[Columns] = []
        self.rows = 0

    def append(self, columns: Columns) -> None:
        """Add rows behind those that are here."""
        if not columns.rows:
            return
        self.rows += columns.rows
        self._parts.append(columns)
        # Parts halve in size from the first to the last, so a row is copied a logarithmic number of times.
        while len(self._parts) > 1 and self._parts[-2].rows < 2 * self._parts[-1].rows:
            self._parts[-2:] = [Columns.concat(self._parts[-2:])]

    def take(self, indices: NDArray[np.integer[Any]]) -> Columns:
        """The rows at `indices`, in that order."""
        if not len(indices):
            return no_columns(self._spec)
        starts = np.cumsum([0, *(part.rows for part in self._parts)])
        part_of = np.searchsorted(starts, indices, side="right") - 1
        order = np.argsort(part_of, kind="stable")
        found = [
            self._parts[part].take(indices[order[part_of[order] == part]] - starts[part])
            for part in np.unique(part_of)
        ]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return Columns.concat(found).take(back)
