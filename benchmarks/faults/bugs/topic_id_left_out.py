"""A prediction's id is made of partition, offset and time alone: in a topic that was recreated it could come again."""

from __future__ import annotations

import uuid
from typing import Any

from benchmarks.faults.bugs import replace
from inference import emit


def apply() -> None:
    """The same topic id for all topics."""

    def anonymous(stamps: Any, _topic_id: uuid.UUID, partition: int, offsets: Any, rows: Any) -> Any:
        return original(stamps, uuid.UUID(int=0), partition, offsets, rows)

    original = replace(emit, "prediction_ids", anonymous)
