"""The worker counts observations of transactions that were aborted, as Faust does unless it is told otherwise."""

from __future__ import annotations

from typing import Any

from benchmarks.faults.bugs import replace
from streams.worker import app


def apply() -> None:
    """Read uncommitted records."""

    def uncommitted(self: Any, transport: Any) -> Any:
        consumer = original(self, transport)
        consumer._isolation_level = "read_uncommitted"
        return consumer

    original = replace(app._Thread, "_create_worker_consumer", uncommitted)
