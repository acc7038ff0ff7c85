"""Which arm answers a row, and which shadow arms see a copy: sticky by key, the same in every process and after every restart."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.versions import Version
from schemas.events import Arm

_U64: Final = np.uint64


@dataclass(frozen=True, eq=False)
class ServedArm:
    """An arm of the route table with the version, opened and checked, that computes its scores."""

    arm: Arm
    version: Version


@dataclass(frozen=True, eq=False)
class Route:
    """Who answers, as far as it can: the arms of one route table whose versions are ready."""

    model: str
    revision: int
    live: tuple[ServedArm, ...] = ()
    shadows: tuple[ServedArm, ...] = ()
    pass_until_ms: int = 0
    """Requests up to this timestamp are rejected without limit."""


@dataclass(frozen=True, eq=False)
class Share:
    """The rows that one arm gets."""

    served: ServedArm
    rows: NDArray[np.int64]
    """Indices into the keys that were routed, ascending."""
    propensity: float
    """Probability with which an entity gets this arm."""


def route_rows(route: Route, keys: Sequence[bytes]) -> list[Share]:
    """Every key once among the live arms' shares; shadow arms' shares are copies. No live arm: no shares at all."""
    weights = np.array([served.arm.weight for served in route.live], dtype=np.float64)
    if weights.sum() <= 0:
        return []
    everything = np.arange(len(keys))
    if len(weights) == 1:
        shares = [Share(route.live[0], everything, 1.0)]
    else:
        edges = np.cumsum(weights / weights.sum())
        edges[-1] = 1.0
        chosen = np.searchsorted(edges, uniform(keys, route.model), side="right")
        shares = [
            Share(served, np.flatnonzero(chosen == index), float(weights[index] / weights.sum()))
            for index, served in enumerate(route.live)
        ]
    for served in route.shadows:
        weight = served.arm.weight
        copied = (
            everything
            if weight >= 1
            else np.flatnonzero(uniform(keys, f"{route.model}/{served.arm.name}") < weight)
        )
        shares.append(Share(served, copied, min(weight, 1.0)))
    return [share for share in shares if len(share.rows)]


def uniform(keys: Sequence[bytes], salt: str) -> NDArray[np.float64]:
    """A number in [0, 1) for each key, independent between salts.

    CRC-32 is linear: the checksums of one key under two salts differ by a constant. So the salt comes in afterwards, and
    splitmix64's finaliser (Steele, Lea, Flood 2014) mixes both.
    """
    x = np.fromiter(map(zlib.crc32, keys), _U64, len(keys))
    x = x ^ _U64(zlib.crc32(salt.encode()) << 32)
    for _ in range(2):
        x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
        x = x ^ (x >> _U64(31))
    return (x >> _U64(11)).astype(np.float64) * 2.0**-53
