"""The sink inserts what a transaction wrote that was aborted later, and then what the repeat of it wrote."""

from __future__ import annotations

from typing import Any

from benchmarks.faults.bugs import replace
from runtime.settings import Settings
from streams.sink import loop


def apply() -> None:
    """Read uncommitted records."""

    def uncommitted(settings: Settings, group: str, **options: Any) -> Any:
        return original(settings, group, **options | {"isolation.level": "read_uncommitted"})

    original = replace(loop, "consumer", uncommitted)
