"""The rows of a micro-batch of records: most records are one row, an Arrow record is many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Rows:
    """Which record each row is of; rows are numbered through the micro-batch, in the order of the records."""

    record: NDArray[np.int64]
    """Index of the record of each row."""
    within: NDArray[np.int64]
    """Number of each row within its record."""
    first: NDArray[np.int64]
    """Number of the first row of each record, and behind the last the number of all rows."""
    single: bool
    """Whether every record is one row, so that numbers of rows are indices of records."""

    @classmethod
    def of(cls, records: int, counts: Mapping[int, int]) -> Rows:
        """The rows of `records` records of one row each, but for those in `counts`.

        >>> Rows.of(3, {1: 2}).record.tolist(), Rows.of(3, {1: 2}).within.tolist()
        ([0, 1, 1, 2], [0, 0, 1, 0])
        """
        if not counts:
            every = np.arange(records)
            return cls(every, np.zeros(records, np.int64), np.arange(records + 1), True)
        many = np.ones(records, np.int64)
        many[list(counts)] = list(counts.values())
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum(many)])
        record = np.repeat(np.arange(records), many)
        return cls(record, np.arange(len(record)) - first[record], first, False)

    def spread(self, by_record: Mapping[int, T]) -> dict[int, T]:
        """What is known of records, as known of each of their rows."""
        if self.single:
            return dict(by_record)
        return {
            row: found
            for record, found in by_record.items()
            for row in range(self.first[record], self.first[record + 1])
        }
