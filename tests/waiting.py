"""How a test waits: for a condition, up to a deadline, never for luck."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

WITHIN_SEC: Final = 60.0
FIRST_PAUSE_SEC: Final = 0.005
LONGEST_PAUSE_SEC: Final = 0.05


def until(condition: Callable[[], Any], what: str, within_sec: float = WITHIN_SEC) -> Any:
    """The first true value of `condition()`. Fails with `what` if there is none within `within_sec`."""
    deadline, pause_sec = time.monotonic() + within_sec, FIRST_PAUSE_SEC
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within_sec:.0f} s: {what}"
        time.sleep(pause_sec)
        pause_sec = min(1.5 * pause_sec, LONGEST_PAUSE_SEC)
    return found
