"""The sink inserts what a transaction wrote that was aborted later, and then what the repeat of it wrote."""

from __future__ import annotations

from typing import Any

from benchmarks.faults.bugs import open_for_long, replace
from runtime.settings import Settings
from streams.sink import loop


def apply() -> None:
    """Read uncommitted records; and let there be some, in the gateway, which has this module too."""
    open_for_long.apply()

    def uncommitted(settings: Settings, group: str, **options: Any) -> Any:
        return original(settings, group, **options | {"isolation.level": "read_uncommitted"})

    original = replace(loop, "consumer", uncommitted)
