"""Labels take for granted that ClickHouse has all that was written: what was joined lately is forgotten before it is there."""

from __future__ import annotations

from typing import Any

from benchmarks.faults.bugs import replace
from streams.labels.progress import SinkProgress


def apply() -> None:
    """The sink has always passed."""

    def passed(_self: SinkProgress, _ends: Any) -> bool:
        return True

    replace(SinkProgress, "passed", passed)
