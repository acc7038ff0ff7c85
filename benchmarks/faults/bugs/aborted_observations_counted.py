"""The worker counts observations of transactions that were aborted, as Faust does unless it is told otherwise."""

from __future__ import annotations

from typing import Any

from benchmarks.faults.bugs import open_for_long, replace
from streams.worker import app


def apply() -> None:
    """Read uncommitted records; and let there be some, in the gateway, which has this module too."""
    open_for_long.apply()

    def uncommitted(self: Any, transport: Any) -> Any:
        consumer = original(self, transport)
        consumer._isolation_level = "read_uncommitted"
        return consumer

    original = replace(app._Thread, "_create_worker_consumer", uncommitted)
