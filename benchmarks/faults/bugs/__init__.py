"""Seeded bugs: each takes one guarantee out of one service, so that the harness has something to find.

A bug is a module here with a function `apply`, called in the service's process before the service starts: it replaces one seam of
the product, which itself knows nothing of bugs. Where a second guard makes the loss of the first harmless, both are taken away, and
the bug says so. `table` lists them with the faults that bring each out soonest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from warehouse.migrate import Migration


def replace(owner: Any, name: str, new: Any) -> Any:
    """Put `new` in the place of `owner.name`, and return what was there."""
    original = getattr(owner, name)
    setattr(owner, name, new)
    return original


def changed(migrations: Iterable[Migration], old: str, new: str) -> list[Migration]:
    """The migrations with `new` wherever they say `old`.

    Raises:
        AssertionError: none says it: they were rewritten, and the bug with them.
    """
    before = list(migrations)
    after = [each._replace(text=each.text.replace(old, new)) for each in before]
    if after == before:
        raise AssertionError(f"no migration says {old!r}")
    return after
