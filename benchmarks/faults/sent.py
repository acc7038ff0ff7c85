"""What was sent, partition by partition, with the ids that its answers must have."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.faults import rows
from benchmarks.faults.load import Ledger
from benchmarks.faults.rows import PARTITIONS
from control.bijection import Ids, ids_of
from schemas.identity import prediction_ids

CHUNK_ROWS: Final = 500_000
CHUNK_NUMBERS: Final = 10_000_000


class Sent(NamedTuple):
    """The requests of one partition, over all generations of the topic, in the order of sending."""

    rows: NDArray[np.int64]
    generations: NDArray[np.int64]
    offsets: NDArray[np.int64]
    ids: Ids


def sent_to(ledger: Ledger, partition: int) -> Sent:
    """What was sent to `partition` and acknowledged."""
    every = np.arange(ledger.sent)
    mine = np.concatenate(
        [part[rows.keys(ledger.seed, part) % PARTITIONS == partition] for part in parts(every)] or [every]
    )
    offsets = ledger.offsets[mine]
    if (offsets < 0).any():
        raise AssertionError("a row was not acknowledged")
    generations = np.searchsorted(ledger.first_rows, mine, side="right") - 1
    order = np.lexsort((offsets, generations))
    mine, offsets, generations = mine[order], offsets[order], generations[order]
    found = []
    for generation, topic_id in enumerate(ledger.topic_ids):
        which = generations == generation
        at = offsets[which]
        # A topic without transactions has no gaps: more or fewer records than were acknowledged would show here.
        astray = np.flatnonzero(at != np.arange(len(at)))
        if len(astray):
            raise AssertionError(
                f"partition {partition} of the request topic does not hold what was acknowledged: {len(at)} rows, and at place {astray[0]} "
                f"the offsets {at[astray[:5]].tolist()}"
            )
        runs = [(topic_id, partition, len(at))]
        made = prediction_ids(ledger.timestamps_ms[mine[which]], runs, at, np.zeros_like(at))
        found.append(ids_of(made))
    return Sent(mine, generations, offsets, np.concatenate(found) if found else np.zeros(0, "S16"))


def parts(every: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """In pieces of at most `CHUNK_ROWS`."""
    return [every[start : start + CHUNK_ROWS] for start in range(0, len(every), CHUNK_ROWS)]


def locate_in(ids: Ids, order: NDArray[np.int64], wanted: Ids) -> NDArray[np.int64]:
    """`control.bijection.locate` with the order made once."""
    if not len(ids) or not len(wanted):
        return np.full(len(wanted), -1, np.int64)
    place = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    found: NDArray[np.int64] = np.where(ids[order[place]] == wanted, order[place], -1)
    return found


def first_id(ids: Ids, mask: NDArray[np.bool_]) -> str:
    """The first of `ids` that `mask` marks, as an example; "" if there is none."""
    where = np.flatnonzero(mask)
    return ids[where[0] : where[0] + 1].tobytes().hex() if len(where) else ""


def row_at(sent: Sent, mask: NDArray[np.bool_]) -> str:
    """The first request that `mask` marks, as an example; "" if there is none."""
    where = np.flatnonzero(mask)
    if not len(where):
        return ""
    place = int(where[0])
    return f"{sent.rows[place]} (offset {sent.offsets[place]}, generation {sent.generations[place]})"
