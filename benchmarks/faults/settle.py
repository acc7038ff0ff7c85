"""Waiting for what comes by itself, a moment after the load's end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")
LOOK_AGAIN_SEC: Final = 0.5


def settled(look: Callable[[], T], done: Callable[[T], bool], deadline_sec: float, still_sec: float) -> T:
    """What `look` gives, as soon as it is `done`; else when it has been the same for `still_sec`, or after `deadline_sec`."""
    changed = began = time.monotonic()
    found = look()
    while not done(found):
        now = time.monotonic()
        if now > began + deadline_sec or now > changed + still_sec:
            break
        time.sleep(LOOK_AGAIN_SEC)
        before, found = found, look()
        if found != before:
            changed = time.monotonic()
    return found
