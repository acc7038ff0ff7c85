"""The worker writes what it counted in one transaction, and its state and offset in another, two seconds later, so that a kill falls in between."""

from __future__ import annotations

import time
from typing import Final

from benchmarks.faults.bugs import replace
from streams.worker.state import Save, SourcePartition

PAUSE_SEC: Final = 2.0


def apply() -> None:
    """Two transactions a save."""

    def in_two(self: SourcePartition, save: Save) -> None:
        producer = self._producer
        if producer is None:
            raise RuntimeError("written before it was opened")
        producer.begin()
        for record in save.drained.records:
            producer.produce(record.topic, record.value, record.key)
        producer.commit()
        time.sleep(PAUSE_SEC)
        original(self, save._replace(drained=save.drained._replace(records=[])))

    original = replace(SourcePartition, "_transact", in_two)
