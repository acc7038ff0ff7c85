"""A model's labelled rows, kept in memory and brought up to date by what is new.

An update is due every few hundred labels, and its draw from all history may not cost a scan of all history. What may be kept is kept:
the features of an answered prediction never change, and a label is only ever followed by a later revision, which is a row of its own
here. So `labelled(through_ms)` is exact for any `through_ms`: it sees no label that was joined later, and the newest of those that
were joined by then.

With a `Tail`, ClickHouse is asked once and Kafka from then on: nobody waits for the sink. Without, and after an outage, what is new is
asked for in ClickHouse by feedback partition: within one, labels are joined in order of `joined_at` and inserted in that order, so
nothing appears below what was already seen there; `OVERLAP_MS` is for a clock that steps back when a partition moves.
"""

from __future__ import annotations

import logging
from typing import Final, TypeAlias

import numpy as np
from clickhouse_connect.driver.client import Client
from numpy.typing import NDArray

from features.columns import Columns
from schemas.spec import ModelSpec
from training import stored
from training.chunks import Chunks
from training.joined import Joined
from training.rows import LABELS, Rows
from training.tail import Tail

log = logging.getLogger(__name__)

HISTORY_ROWS: Final = 500_000
"""Newest labelled rows of a model that are looked at (a training file's come on top)."""
OVERLAP_MS: Final = 2000
LATE_MS: Final = 60_000
"""So long after its join a label's observation may be missing: it is on its way."""
_SLACK: Final = 1.25
_NEVER: Final = np.iinfo(np.int64).max
_EVER_MS: Final = 10_000_000_000_000
"""Past every label; ClickHouse's times end soon after."""


class History:
    """One model's labelled rows. Not thread-safe."""

    def __init__(self, client: Client, spec: ModelSpec, tail: Tail | None = None) -> None:
        self._client, self.spec, self._tail = client, spec, tail
        self._clear()

    def reconnect(self, client: Client, tail: Tail | None) -> None:
        """Go on through these, after an outage: what is here stays, whatever the outage interrupted."""
        self._client, self._tail = client, tail
        self._followed = False

    def labelled(self, through_ms: int, history_rows: int = HISTORY_ROWS) -> Labelled:
        """The newest `history_rows` rows with the labels joined up to `through_ms`.

        Raises:
            Outage: ClickHouse or Kafka does not answer.
            Refused: ClickHouse will not answer this.
        """
        if self._tail is None:
            if self._features.rows > history_rows * _SLACK:
                self._clear()
            self._take_over([])
            self._ask(through_ms, history_rows)
        else:
            self._follow(self._tail, history_rows)
        rows = self._features.rows
        labels = self._labels[:rows]
        valid = np.flatnonzero(
            (labels["joined_ms"] <= through_ms)
            & (self._superseded[:rows] > through_ms)
            & ~np.isnan(labels["target"])
        )
        return Labelled(self, newest(labels, valid, history_rows))

    @property
    def seen_ms(self) -> int:
        """When the newest label seen was joined, 0 if none was."""
        return self._newest_ms

    def columns(self, indices: NDArray[np.int64]) -> Columns:
        """The features of the rows at `indices`, in that order."""
        return self._features.take(indices)

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.void]:
        """The labels of the rows at `indices`."""
        return self._labels[indices]

    def _clear(self) -> None:
        self._features = Chunks(self.spec)
        self._labels = np.zeros(1024, LABELS)
        self._superseded = np.full(1024, _NEVER, np.int64)
        """When the next revision of the row's label was joined."""
        self._newest: dict[bytes, tuple[int, int]] = {}
        """Prediction id → (revision, row) of the newest revision seen."""
        self._newest_ms = 0
        self._seen_ms: dict[int, int] = {}
        """Feedback partition → when the newest label that ClickHouse had of it was joined."""
        self._late: list[Joined] = []
        """Labels whose observation was nowhere yet."""
        self._followed = False

    def _ask(self, through_ms: int, rows: int) -> None:
        """Take over what ClickHouse has and was not asked for before."""
        from_ms = {partition: seen_ms - OVERLAP_MS for partition, seen_ms in self._seen_ms.items()}
        found = stored.labels(self._client, self.spec, from_ms, through_ms, rows)
        if found is None:
            return
        # First: what could not be taken over has to be asked for again.
        self._add(found.joined)
        joined_ms = found.joined.labels["joined_ms"]
        for partition in np.unique(found.partitions):
            seen = int(joined_ms[found.partitions == partition].max())
            self._seen_ms[int(partition)] = max(seen, self._seen_ms.get(int(partition), 0))

    def _follow(self, tail: Tail, history_rows: int) -> None:
        """Take over what came through Kafka; at the beginning, and after a gap, also what ClickHouse has and was not asked for before."""
        if self._features.rows > history_rows * _SLACK**2:
            self._clear()
        if not self._followed or not tail.follows(self.spec):
            # First: what is not in ClickHouse yet when it is asked has to come from here.
            tail.follow(self.spec)
            self._ask(_EVER_MS, int(history_rows * _SLACK))
            self._followed = True
        tail.read_to_end()
        self._take_over(tail.outcomes(self.spec))

    def _take_over(self, news: list[Joined]) -> None:
        """`news`, after what was late before."""
        waiting, self._late = [*self._late, *news], []
        for place, joined in enumerate(waiting):
            try:
                self._add(joined)
            except BaseException:
                self._late += waiting[place:]
                raise

    def _add(self, joined: Joined) -> None:
        """Take over the rows of `joined` that are new."""
        seen = {key: self._newest[key][0] for key in joined.ids if key in self._newest}
        fresh = []
        for row, (key, revision) in enumerate(zip(joined.ids, joined.revisions, strict=True)):
            if revision > seen.get(key, -1):
                seen[key] = revision
                fresh.append(row)
        if not fresh:
            return
        ids, labels = [joined.ids[row] for row in fresh], joined.labels[fresh]
        # An outage here leaves everything as it was.
        columns, present = self._found(ids, labels)
        self._newest_ms = max(self._newest_ms, int(labels["joined_ms"].max()))
        if len(present) < len(fresh):
            there = set(present)
            self._miss(joined, [row for place, row in enumerate(fresh) if place not in there])
        first = self._features.rows
        self._append(columns, labels[present])
        for place, position in enumerate(present, first):
            key = ids[position]
            if key in self._newest:
                self._superseded[self._newest[key][1]] = self._labels["joined_ms"][place]
            self._newest[key] = (joined.revisions[fresh[position]], place)

    def _found(self, ids: list[bytes], labels: NDArray[np.void]) -> tuple[Columns, list[int]]:
        """The features of `ids` and the positions in `ids` for which there are any, in ascending order."""
        if self._tail is None or not self._followed:
            return stored.features(self._client, self.spec, ids, labels["requested_ms"])
        columns, present = self._tail.features(self.spec, ids)
        if len(present) == len(ids):
            return columns, present
        there = set(present)
        missing = [position for position in range(len(ids)) if position not in there]
        more, found = stored.features(
            self._client, self.spec, [ids[position] for position in missing], labels["requested_ms"][missing]
        )
        positions = np.array([*present, *(missing[place] for place in found)], np.int64)
        ascending = np.argsort(positions)
        return Columns.concat([columns, more]).take(ascending), positions[ascending].tolist()

    def _miss(self, joined: Joined, rows: list[int]) -> None:
        """Come back to labels without an observation, unless it has to be there by now."""
        # The label was joined through this very observation: it is on its way, or somebody deleted it.
        young = [row for row in rows if joined.labels["joined_ms"][row] > self._newest_ms - LATE_MS]
        if young:
            ids, revisions = [joined.ids[row] for row in young], [joined.revisions[row] for row in young]
            self._late.append(Joined(ids, revisions, joined.labels[young]))
        if old := len(rows) - len(young):
            log.warning("%s: %d labels without their observation", self.spec.name, old)

    def _append(self, columns: Columns, labels: NDArray[np.void]) -> None:
        rows = self._features.rows
        self._reserve(rows + columns.rows)
        self._labels[rows : rows + columns.rows] = labels
        self._features.append(columns)

    def _reserve(self, rows: int) -> None:
        have = len(self._labels)
        if rows > have:
            size = max(rows, 2 * have)
            self._labels = np.concatenate([self._labels, np.zeros(size - have, LABELS)])
            self._superseded = np.concatenate([self._superseded, np.full(size - have, _NEVER, np.int64)])


Histories: TypeAlias = dict[str, History]
"""By model."""


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
