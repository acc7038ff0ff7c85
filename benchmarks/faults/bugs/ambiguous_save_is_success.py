"""A save whose commit came to nothing, or to nobody knows what, is taken for written."""

from __future__ import annotations

from typing import Any

from benchmarks.faults.bugs import replace
from runtime.transactions import TransactionLost
from schemas.errors import Fenced
from streams.worker.state import SourcePartition


def apply() -> None:
    """Go on with a new producer as if it had been committed."""

    def hopeful(self: Any, save: Any) -> None:
        try:
            original(self, save)
        except TransactionLost:
            pass  # this is the bug
        except Fenced:
            self._producer._open = False
            self._producer._producer = self._producer._initialised()

    original = replace(SourcePartition, "_transact", hopeful)
