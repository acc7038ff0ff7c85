"""A model's labelled rows as the warehouse knows them, kept in memory and brought up to date by what is new.

An update is due every few hundred labels, and its draw from all history may not cost a scan of all history. What may be kept is kept:
the features of an answered prediction never change, and a label is only ever followed by a later revision, which is a row of its own
here. So `labelled(through_ms)` is exact for any `through_ms`: it sees no label that was joined later, and the newest of those that
were joined by then.

What is new is asked for by feedback partition. Within one, labels are joined in order of `joined_at` and inserted in that order, so
nothing appears below what was already seen there; `OVERLAP_MS` is for a clock that steps back when a partition moves.
"""

from __future__ import annotations

import logging
import uuid
from typing import Final

import numpy as np
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from numpy.typing import NDArray

from features.columns import Columns
from schemas.spec import ModelSpec
from training.rows import LABELS, Rows, no_columns
from warehouse.client import mapped

log = logging.getLogger(__name__)

HISTORY_ROWS: Final = 500_000
"""Newest labelled rows of a model that are looked at (a training file's come on top)."""
OVERLAP_MS: Final = 2000
_SLACK: Final = 1.25
_CHUNK_ROWS: Final = 50_000
_INLINE_IDS: Final = 2000
"""So many ids fit into a query; a larger range is read whole and matched here."""
_NEVER: Final = np.iinfo(np.int64).max

_LABELS_SQL: Final = """
SELECT prediction_id, revision, toUnixTimestamp64Milli(requested_at) AS requested_ms, toUnixTimestamp64Milli(joined_at) AS joined_ms,
    toString(truth) AS truth, truth_value, toString(label) AS label, loss, feedback_partition
FROM internal.outcomes
WHERE model = {model:String} AND role = 'live'
    AND joined_at <= fromUnixTimestamp64Milli({through_ms:Int64}, 'UTC')
    AND joined_at >= fromUnixTimestamp64Milli(
        transform(feedback_partition, {partitions:Array(Int32)}, {seen_ms:Array(Int64)}, toInt64(0)), 'UTC')
ORDER BY requested_at DESC, prediction_id DESC, revision DESC
LIMIT {rows:UInt64}
"""
_FEATURES_SQL: Final = """
SELECT prediction_id, numbers, texts
FROM internal.observations
WHERE model = {model:String} AND role = 'live' AND status = 'answered'
    AND requested_at >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')
    AND requested_at <= fromUnixTimestamp64Milli({to_ms:Int64}, 'UTC')
"""


class History:
    """One model's labelled rows. Not thread-safe."""

    def __init__(self, client: Client, spec: ModelSpec) -> None:
        self._client = client
        self._spec = spec
        self._classes = {name: index for index, name in enumerate(spec.classes)}
        self._clear()

    def labelled(self, through_ms: int, history_rows: int = HISTORY_ROWS) -> Labelled:
        """The newest `history_rows` rows with the labels joined up to `through_ms`.

        Raises:
            Outage: ClickHouse does not answer.
            Refused: ClickHouse will not answer this.
        """
        try:
            self._refresh(through_ms, history_rows)
        except ClickHouseError as error:
            raise mapped(error) from error
        labels = self._labels[: self._rows]
        valid = np.flatnonzero(
            (labels["joined_ms"] <= through_ms)
            & (self._superseded[: self._rows] > through_ms)
            & ~np.isnan(labels["target"])
        )
        return Labelled(self, newest(labels, valid, history_rows))

    @property
    def seen_ms(self) -> int:
        """When the newest label seen was joined, 0 if none was."""
        return max(self._seen_ms.values(), default=0)

    def columns(self, indices: NDArray[np.int64]) -> Columns:
        """The features of the rows at `indices`, in that order."""
        if not len(indices):
            return no_columns(self._spec)
        starts = np.cumsum([0, *(chunk.rows for chunk in self._chunks)])
        chunk_of = np.searchsorted(starts, indices, side="right") - 1
        order = np.argsort(chunk_of, kind="stable")
        parts = [
            self._chunks[chunk].take(indices[order[chunk_of[order] == chunk]] - starts[chunk])
            for chunk in np.unique(chunk_of)
        ]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return Columns.concat(parts).take(back)

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """The labels of the rows at `indices`."""
        return self._labels[indices]

    def _clear(self) -> None:
        self._rows = 0
        self._labels = np.zeros(1024, LABELS)
        self._superseded = np.full(1024, _NEVER, np.int64)
        """When the next revision of the row's label was joined."""
        self._chunks: list[Columns] = []
        self._newest: dict[bytes, tuple[int, int]] = {}
        """Prediction id → (revision, row) of the newest revision seen."""
        self._seen_ms: dict[int, int] = {}

    def _refresh(self, through_ms: int, history_rows: int) -> None:
        if self._rows > history_rows * _SLACK:
            self._clear()
        partitions = sorted(self._seen_ms)
        found = self._client.query_arrow(
            _LABELS_SQL,
            parameters={
                "model": self._spec.name,
                "through_ms": through_ms,
                "partitions": partitions,
                "seen_ms": [max(0, self._seen_ms[partition] - OVERLAP_MS) for partition in partitions],
                "rows": history_rows,
            },
        )
        if not found.num_rows:
            return
        joined_ms = found["joined_ms"].to_numpy()
        source = found["feedback_partition"].to_numpy()
        for partition in np.unique(source):
            seen = int(joined_ms[source == partition].max())
            self._seen_ms[int(partition)] = max(seen, self._seen_ms.get(int(partition), 0))
        self._add(found)

    def _add(self, found: pa.Table) -> None:
        """Take over the rows of `found` that are new."""
        ids = uuid_bytes(found["prediction_id"])
        revisions = found["revision"].to_pylist()
        seen = {key: self._newest[key][0] for key in ids if key in self._newest}
        fresh = []
        for row in range(found.num_rows - 1, -1, -1):  # a prediction's revisions in ascending order
            if revisions[row] > seen.get(ids[row], -1):
                seen[ids[row]] = revisions[row]
                fresh.append(row)
        if not fresh:
            return
        labels = self._as_labels(found, ids)[fresh]
        columns, present = self._features([ids[row] for row in fresh], labels)
        if len(present) < len(fresh):
            # The label was joined through this very observation, so it was there: somebody deleted it since.
            log.warning("%s: %d labels without their observation", self._spec.name, len(fresh) - len(present))
        first = self._rows
        self._append(columns, labels[present])
        for place, position in enumerate(present, first):
            key = ids[fresh[position]]
            if key in self._newest:
                self._superseded[self._newest[key][1]] = self._labels["joined_ms"][place]
            self._newest[key] = (revisions[fresh[position]], place)

    def _targets(self, found: pa.Table) -> NDArray[np.float64]:
        """float64 [rows]; NaN for a label that the spec does not know (any more)."""
        if self._spec.task == "regression":
            return np.asarray(found["truth_value"].to_numpy(), np.float64)
        truths = found["truth"].to_pylist()
        return np.array([self._classes.get(truth, np.nan) for truth in truths], np.float64)

    def _as_labels(self, found: pa.Table, ids: list[bytes]) -> NDArray[np.void]:
        labels = np.zeros(found.num_rows, LABELS)
        halves = np.frombuffer(b"".join(ids), dtype=">u8").reshape(-1, 2)
        labels["id_high"], labels["id_low"] = halves[:, 0], halves[:, 1]
        labels["requested_ms"], labels["joined_ms"] = (
            found["requested_ms"].to_numpy(),
            found["joined_ms"].to_numpy(),
        )
        labels["target"], labels["loss"] = self._targets(found), found["loss"].to_numpy()
        labels["answered"] = [self._classes.get(label, -1) for label in found["label"].to_pylist()]
        return labels

    def _features(self, ids: list[bytes], labels: NDArray[np.void]) -> tuple[Columns, list[int]]:
        """The features of `ids` and the positions in `ids` for which there are any, in ascending order."""
        order = np.argsort(labels["requested_ms"], kind="stable")
        parts: list[Columns] = []
        positions: list[int] = []
        for start in range(0, len(order), _CHUNK_ROWS):
            chosen = order[start : start + _CHUNK_ROWS]
            times = labels["requested_ms"][chosen]
            sql, parameters = _FEATURES_SQL, {
                "model": self._spec.name, "from_ms": int(times.min()), "to_ms": int(times.max()),
            }  # fmt: skip
            if len(chosen) <= _INLINE_IDS:
                # Ids are digits and hyphens only; as a bound parameter the list would exceed the limit on a URL.
                sql += f" AND prediction_id IN ({', '.join(_quoted(ids[row]) for row in chosen)})"
            table = self._client.query_arrow(sql, parameters=parameters).combine_chunks()
            places = {key: place for place, key in enumerate(uuid_bytes(table["prediction_id"]))}
            have = [int(row) for row in chosen if ids[row] in places]
            if have:
                columns = Columns.from_lists(_list(table["numbers"]), _list(table["texts"]), self._spec)
                parts.append(columns.take([places[ids[row]] for row in have]))
                positions += have
        if not parts:
            return no_columns(self._spec), []
        ascending = np.argsort(positions)
        return Columns.concat(parts).take(ascending), [positions[place] for place in ascending]

    def _append(self, columns: Columns, labels: NDArray[np.void]) -> None:
        if not columns.rows:
            return
        self._reserve(self._rows + columns.rows)
        self._labels[self._rows : self._rows + columns.rows] = labels
        self._rows += columns.rows
        self._chunks.append(columns)
        # Chunks halve in size from the first to the last, so a row is copied a logarithmic number of times.
        while len(self._chunks) > 1 and self._chunks[-2].rows < 2 * self._chunks[-1].rows:
            self._chunks[-2:] = [Columns.concat(self._chunks[-2:])]

    def _reserve(self, rows: int) -> None:
        have = len(self._labels)
        if rows > have:
            size = max(rows, 2 * have)
            self._labels = np.concatenate([self._labels, np.zeros(size - have, LABELS)])
            self._superseded = np.concatenate([self._superseded, np.full(size - have, _NEVER, np.int64)])


class Labelled:
    """The rows of a history that an order may use; features are gathered only for those that are asked for."""

    def __init__(self, history: History, indices: NDArray[np.int64]) -> None:
        self._history = history
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def labels(self) -> NDArray[np.void]:
        """The labels of all of them, in no particular order: positions in it are what `rows` takes."""
        return self._history.labels(self._indices)

    def rows(self, positions: NDArray[np.int64]) -> Rows:
        """The rows at `positions`, in that order."""
        indices = self._indices[positions]
        return Rows(self._history.columns(indices), self._history.labels(indices))


def newest(labels: NDArray[np.void], among: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Indices of the `rows` newest by (requested_at, prediction_id) of the rows `among`, in no particular order."""
    if len(among) <= rows:
        return among
    if rows == 0:
        return among[:0]
    times = labels["requested_ms"][among]
    oldest = np.partition(times, len(times) - rows)[len(times) - rows]
    certain, tied = among[times > oldest], among[times == oldest]
    return np.concatenate([certain, tied[by_age(labels[tied])[::-1][: rows - len(certain)]]])


def by_age(labels: NDArray[np.void]) -> NDArray[np.int64]:
    """The order of `labels` by (requested_at, prediction_id), oldest first."""
    return np.lexsort((labels["id_low"], labels["id_high"], labels["requested_ms"]))


def uuid_bytes(column: pa.ChunkedArray) -> list[bytes]:
    """A UUID column (Arrow's extension type) as bytes in network order."""
    return [value for chunk in column.chunks for value in chunk.storage.to_pylist()]


def _quoted(value: bytes) -> str:
    return f"'{uuid.UUID(bytes=value)}'"


def _list(column: pa.ChunkedArray) -> pa.ListArray:
    return pa.concat_arrays(column.chunks)
