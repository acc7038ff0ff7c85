"""Which labelled rows an order is fitted on: a function of the order and of what was labelled by then."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.history import Labelled, by_age, newest
from training.rows import Rows

_U64 = np.uint64
_GOLDEN: Final = 0x9E3779B97F4A7C15


class UpdateRows(NamedTuple):
    """What an update is fitted on."""

    recent: Rows
    """The newest labelled rows, oldest first."""
    replay: Rows
    """Drawn uniformly from everything older: labelled rows and the file that trained the first version."""


def update_rows(labelled: Labelled, file: Rows, recent_rows: int, replay_rows: int, seed: int) -> UpdateRows:
    """The `recent_rows` newest labelled rows and `replay_rows` of what is older; fewer if there are not so many."""
    labels = labelled.labels
    everything = np.arange(len(labels))
    recent = newest(labels, everything, recent_rows)
    recent = recent[by_age(labels[recent])]
    older = np.ones(len(labels), dtype=bool)
    older[recent] = False
    old = everything[older]
    keys = np.concatenate([_keys(labels["id_low"][old], seed), _keys(_file_ids(len(file)), seed)])
    drawn = _smallest(keys, replay_rows)
    replay = Rows.concat(
        [labelled.rows(old[drawn[drawn < len(old)]]), file.take(drawn[drawn >= len(old)] - len(old))]
    )
    return UpdateRows(labelled.rows(recent), replay)


def newest_rows(labelled: Labelled, file: Rows, rows: int) -> Rows:
    """The `rows` newest rows, oldest first. The file's rows are older than every labelled one, in the file's order."""
    labels = labelled.labels
    chosen = newest(labels, np.arange(len(labels)), rows)
    from_file = min(len(file), rows - len(chosen))
    return Rows.concat(
        [
            file.take(np.arange(len(file) - from_file, len(file))),
            labelled.rows(chosen[by_age(labels[chosen])]),
        ]
    )


def _keys(ids: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A random key per id: the rows with the smallest keys are a uniform draw that does not depend on any order."""
    return _mix(ids ^ _mix(np.array([seed & ((1 << 64) - 1)], dtype=_U64)))


def _file_ids(rows: int) -> NDArray[np.uint64]:
    return _mix(np.arange(1, rows + 1, dtype=_U64) * _U64(_GOLDEN))


def _smallest(keys: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
    """Positions of the `count` smallest keys, in order of key."""
    chosen = np.argpartition(keys, count)[:count] if count < len(keys) else np.arange(len(keys))
    return chosen[np.argsort(keys[chosen], kind="stable")]


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea, Flood 2014), a bijection on 64 bits."""
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    return x ^ (x >> _U64(31))
