"""No bug by itself: a gateway's transactions stay open for half a second, with their records in the broker, so that a kill leaves one behind."""

from __future__ import annotations

import time
from typing import Any, Final

from benchmarks.faults.bugs import replace
from inference import commit

OPEN_SEC: Final = 0.5
FLUSH_SEC: Final = 1.0


def apply() -> None:
    """Wait between writing and committing."""

    def slowly(self: Any, slices: Any) -> None:
        original(self, slices)
        self._producer._producer.flush(FLUSH_SEC)
        time.sleep(OPEN_SEC)

    original = replace(commit.Committer, "_produce", slowly)
