"""A worker that was thought dead writes what it had counted, which its successor has counted too: its transactional ids are its own."""

from __future__ import annotations

import uuid
from typing import Any

from benchmarks.faults.bugs import replace
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer
from streams.worker import state


def apply() -> None:
    """No two processes share an id."""

    def unique(settings: Settings, transactional_id: str, **overrides: Any) -> TransactionalProducer:
        return TransactionalProducer(settings, f"{transactional_id}-{uuid.uuid4()}", **overrides)

    replace(state, "TransactionalProducer", unique)
