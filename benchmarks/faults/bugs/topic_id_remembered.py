"""The topic's id is asked once and kept: right until the topic is deleted and created again, and then the old one's."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from benchmarks.faults.bugs import replace
from inference import emit
from schemas.identity import Run


def apply() -> None:
    """Make ids with the first topic id that was seen."""
    first: list[uuid.UUID] = []

    def outdated(stamps: Any, runs: Sequence[Run], offsets: Any, rows: Any) -> Any:
        first.extend(topic_id for topic_id, *_ in runs[:1])
        return original(stamps, [(first[0], *places) for _, *places in runs], offsets, rows)

    original = replace(emit, "prediction_ids", outdated)
