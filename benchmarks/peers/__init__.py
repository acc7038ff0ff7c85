"""The peers: other ways to serve a model from Kafka, each measured over the same backlog by the same clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.load import Backlog
from benchmarks.meter import Run
from benchmarks.stages import Bench
from schemas.spec import ModelSpec


@dataclass(frozen=True)
class Peer:
    name: str
    key: str


PEERS: Final[tuple[Peer, ...]] = ()


def available(missing: dict[str, str]) -> list[Peer]:
    return []


def measure(at: Bench, peer: Peer, spec: ModelSpec, backlog: Backlog) -> Run:
    raise AssertionError(peer)
