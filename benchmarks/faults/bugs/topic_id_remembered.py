"""The topic's id is asked once and kept: right until the topic is deleted and created again, and then the old one's."""

from __future__ import annotations

import uuid
from typing import Any

from benchmarks.faults.bugs import replace
from inference import emit


def apply() -> None:
    """Make ids with the first topic id that was seen."""
    first: list[uuid.UUID] = []

    def outdated(stamps: Any, topic_id: uuid.UUID, partition: int, offsets: Any, rows: Any) -> Any:
        first.append(topic_id)
        return original(stamps, first[0], partition, offsets, rows)

    original = replace(emit, "prediction_ids", outdated)
