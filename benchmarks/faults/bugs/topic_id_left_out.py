"""A prediction's id is made of partition, offset and time alone: in a topic that was recreated it could come again."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from benchmarks.faults.bugs import replace
from inference import emit
from schemas.identity import Run


def apply() -> None:
    """The same topic id for all topics."""

    def anonymous(stamps: Any, runs: Sequence[Run], offsets: Any, rows: Any) -> Any:
        return original(stamps, [(uuid.UUID(int=0), *places) for _, *places in runs], offsets, rows)

    original = replace(emit, "prediction_ids", anonymous)
