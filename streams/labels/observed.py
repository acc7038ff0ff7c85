"""What was observed lately, in memory: most labels come soon, and need not wait for the sink nor ask ClickHouse.

It is a cache of the end of `observations`, and says only what it is certain of:

* Everything in it was observed **after** this process took its feedback partitions over. So a prediction in it whose label neither
  `recent` remembers nor was marked here has none, and ClickHouse need not be asked for it either.
* A request id means the newest request before the feedback. It is answered from here only if such a request is here; requests of one
  id share a key, so one that is not here is older, or not observed yet.

What is not found here is asked of ClickHouse, as if this did not exist. Bounded in rows and bytes by two generations: the young one
collects, and when it is full the old one is dropped whole and the young one becomes the old. 200,000 rows take up to 64 MiB of columns
and about 250 bytes a row of indices: 120 MB at most.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.arrow import OBSERVATIONS, part_of
from schemas.identity import id_text
from warehouse.lookups import PREDICTION_SCHEMA

ROWS: Final = 200_000
BYTES: Final = 64 * 1024 * 1024
"""Of both generations together."""
_MERGED_ROWS: Final = 4096
_COLUMNS: Final = ["prediction_id", "request_id", *PREDICTION_SCHEMA.names[2:]]
READ: Final = part_of(OBSERVATIONS, [*_COLUMNS, "status"])
"""What a batch must have."""


class Names(NamedTuple):
    """The ids under which feedback may speak of predictions that were just added."""

    model: str
    predictions: list[int]
    """`half` of each id."""
    requests: list[str]


def half(prediction_id: str) -> int:
    """The lower 64 bits of a prediction id: 62 of them are mixed from its source, enough to find it by."""
    return int(prediction_id[19:23] + prediction_id[24:], 16)


class _Piece(NamedTuple):
    """Rows that lie together; the arms of a prediction are neighbours."""

    start: int
    """Number of its first row."""
    rows: pa.RecordBatch
    halves: list[int]


class _Rows:
    """One model's rows of one generation, numbered as they came."""

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._next = 0
        self._by_id: dict[int, int] = {}
        self._by_request: dict[str, int] = {}
        self._same_request: dict[int, int] = {}
        """Row → an earlier row with the same request id."""
        self._same_id: dict[int, int] = {}
        """Row → an earlier one of the same prediction: its arms may have been too large for one record."""
        self.labelled: set[int] = set()
        """Halves of the ids that have a label."""

    def add(self, rows: pa.RecordBatch, halves: NDArray[np.uint64]) -> Names:
        firsts = np.flatnonzero(np.append(True, halves[1:] != halves[:-1]))
        ids = halves[firsts].tolist()
        numbers = (firsts + self._next).tolist()
        self._same_id |= {
            number: self._by_id[key] for key, number in zip(ids, numbers, strict=True) if key in self._by_id
        }
        self._by_id.update(zip(ids, numbers, strict=True))
        requests = rows.column("request_id").take(pa.array(firsts)).to_pylist()
        for request_id, number in zip(requests, numbers, strict=True):
            if request_id:
                earlier = self._by_request.get(request_id)
                if earlier is not None:
                    self._same_request[number] = earlier
                self._by_request[request_id] = number
        self._pieces.append(_Piece(self._next, rows, halves.tolist()))
        self._next += rows.num_rows
        # At a low rate every record is a few rows: merged, or their headers would outweigh them.
        while len(self._pieces) > 1 and self._merges(*self._pieces[-2:]):
            first, second = self._pieces[-2:]
            merged = pa.concat_batches([first.rows, second.rows])
            self._pieces[-2:] = [_Piece(first.start, merged, first.halves + second.halves)]
        return Names(rows.column("model")[0].as_py(), ids, [each for each in requests if each])

    @staticmethod
    def _merges(first: _Piece, second: _Piece) -> bool:
        larger, smaller = len(first.halves), len(second.halves)
        return larger < 2 * smaller and larger + smaller <= _MERGED_ROWS

    def request(self, request_id: str, at_ms: int) -> tuple[int, str] | None:
        """(time, prediction id) of the newest request with this id at or before `at_ms`."""
        newest = None
        number = self._by_request.get(request_id)
        while number is not None:
            piece, row = self._place(number)
            requested_ms = int(piece.rows.column("requested_at")[row].value)
            if requested_ms <= at_ms and (newest is None or requested_ms > newest[0]):
                newest = requested_ms, id_text(piece.rows.column("prediction_id")[row].as_py())
            number = self._same_request.get(number)
        return newest

    def take(self, ids: Iterable[str]) -> list[pa.RecordBatch]:
        """All arms of those of `ids` that are here."""
        wanted: dict[int, tuple[pa.RecordBatch, dict[int, None]]] = {}
        for prediction_id in ids:
            key = half(prediction_id)
            number = self._by_id.get(key)
            while number is not None:
                piece, row = self._place(number)
                # Once each: what came in two records may have been merged, and be neighbours now.
                rows = wanted.setdefault(piece.start, (piece.rows, {}))[1]
                while row < len(piece.halves) and piece.halves[row] == key:
                    rows[row] = None
                    row += 1
                number = self._same_id.get(number)
        return [batch.take(pa.array(list(rows))) for batch, rows in wanted.values()]

    def __contains__(self, key: object) -> bool:
        return key in self._by_id

    def _place(self, number: int) -> tuple[_Piece, int]:
        piece = self._pieces[bisect_right(self._pieces, number, key=lambda each: each.start) - 1]
        return piece, number - piece.start


class _Generation:
    def __init__(self) -> None:
        self.models: dict[str, _Rows] = {}
        self.rows = 0
        self.size_bytes = 0


class Observed:
    """The newest answered predictions, by id and by request id. Not thread-safe."""

    def __init__(self, limit_rows: int = ROWS, limit_bytes: int = BYTES) -> None:
        self._limit_rows, self._limit_bytes = limit_rows // 2, limit_bytes // 2
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._young, self._old = _Generation(), _Generation()

    @property
    def rows(self) -> int:
        """How many rows are here, shadow arms counted too."""
        return self._young.rows + self._old.rows

    def add(self, batch: pa.RecordBatch) -> Names | None:
        """Take over one record of `observations`, which is of one model; None if nothing in it was answered."""
        wanted = pc.equal(batch.column("status"), "answered").to_numpy(zero_copy_only=False)
        if "attempt" in batch.schema.names:
            # A redriven request may have been answered, and labelled, before this process took over: ClickHouse is asked.
            wanted = wanted & (batch.column("attempt").to_numpy() == 0)
        answered = np.flatnonzero(wanted)
        if not len(answered):
            return None
        halves = _halves(batch.column("prediction_id"))[answered]
        order = np.argsort(halves, kind="stable")
        # Taken, and so copied: a slice would keep the whole record in memory, features included.
        rows = batch.select(_COLUMNS).take(pa.array(answered[order]))
        generation = self._young
        generation.rows += rows.num_rows
        generation.size_bytes += rows.nbytes
        names = generation.models.setdefault(rows.column("model")[0].as_py(), _Rows()).add(
            rows, halves[order].astype(np.uint64)
        )
        if generation.rows >= self._limit_rows or generation.size_bytes >= self._limit_bytes:
            self._old, self._young = generation, _Generation()
        return names

    def request(self, model: str, request_id: str, at_ms: int) -> str:
        """The prediction of the newest request with this id at or before `at_ms`; "" if none is here."""
        found = [rows.request(request_id, at_ms) for rows in self._of(model)]
        return max((each for each in found if each is not None), default=(0, ""))[1]

    def predictions(self, model: str, ids: Iterable[str]) -> pa.Table:
        """All arms of those of `ids` that are here, as `warehouse.lookups.predictions` has them."""
        wanted = dict.fromkeys(ids)
        batches: list[pa.RecordBatch] = []
        for rows in self._of(model):
            for batch in rows.take(wanted):
                texts = [id_text(each) for each in batch.column("prediction_id").to_pylist()]
                given = [texts, *(batch.column(name) for name in ("prediction_id", *_COLUMNS[2:]))]
                arrays = [
                    pa.array(column, field.type) if isinstance(column, list) else column.cast(field.type)
                    for column, field in zip(given, PREDICTION_SCHEMA, strict=True)
                ]
                batches.append(pa.record_batch(arrays, schema=PREDICTION_SCHEMA))
        table = pa.Table.from_batches(batches, PREDICTION_SCHEMA)
        # Another prediction may have the same half.
        table = table.filter(pc.is_in(table["id"], value_set=pa.array(list(wanted), pa.string())))
        return table.sort_by([("id", "ascending"), ("arm", "ascending")])

    def labelled(self, model: str, prediction_id: str) -> bool:
        """Whether a prediction that is here has a label."""
        key = half(prediction_id)
        return any(key in rows.labelled for rows in self._of(model))

    def label(self, ids: Iterable[str]) -> None:
        """Those of `ids` that are here have a label from now on, one that ClickHouse knows."""
        keys = [half(each) for each in ids]
        for generation in (self._young, self._old):
            for rows in generation.models.values():
                rows.labelled.update(key for key in keys if key in rows)

    def _of(self, model: str) -> list[_Rows]:
        found = (generation.models.get(model) for generation in (self._young, self._old))
        return [rows for rows in found if rows is not None]


def _halves(column: pa.FixedSizeBinaryArray) -> NDArray[np.uint64]:
    buffer = np.frombuffer(column.buffers()[1], ">u8")
    return buffer[2 * column.offset : 2 * (column.offset + len(column))].reshape(-1, 2)[:, 1]
