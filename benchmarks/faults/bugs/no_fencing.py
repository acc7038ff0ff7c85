"""A gateway that was thought dead goes on writing: its transactional id is its own, so that no successor fences it.

Two guards are gone: the offsets are also committed without the group's generation, which the broker would find outdated. A commit begins
half a second after its rows were chosen, so that a stop falls in between: in a transaction that is open the broker's time-out is a third guard.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Final

from confluent_kafka import TopicPartition

from benchmarks.faults.bugs import replace
from inference import commit
from inference.source import GROUP
from runtime.kafka import consumer
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer

PAUSE_SEC: Final = 0.5


class Unfenced(TransactionalProducer):
    """Nobody else has its id, and it is no member of the group."""

    def __init__(self, settings: Settings, transactional_id: str, **overrides: Any) -> None:
        super().__init__(settings, f"{transactional_id}-{uuid.uuid4()}", **overrides)
        self._outsider = consumer(settings, GROUP)

    def begin(self) -> None:
        """Not at once."""
        time.sleep(PAUSE_SEC)
        super().begin()

    def send_offsets(self, places: list[TopicPartition], _group_metadata: object) -> None:
        """In nobody's name."""
        super().send_offsets(places, self._outsider.consumer_group_metadata())


def apply() -> None:
    """Give the committer such a producer."""
    replace(commit, "TransactionalProducer", Unfenced)
