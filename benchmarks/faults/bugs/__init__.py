"""Seeded bugs: each takes one guarantee out of one service, so that the harness has something to find.

A bug is a module here with a function `apply`, called in the service's process before the service starts: it replaces one seam of
the product, which itself knows nothing of bugs. Where a second guard makes the loss of the first harmless, both are taken away, and
the bug says so. `table` lists them with the faults that bring each out soonest.
"""

from __future__ import annotations

from typing import Any


def replace(owner: Any, name: str, new: Any) -> Any:
    """Put `new` in the place of `owner.name`, and return what was there."""
    original = getattr(owner, name)
    setattr(owner, name, new)
    return original
