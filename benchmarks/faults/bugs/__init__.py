"""Seeded bugs: each takes one guarantee out of one service, so that the harness has something to find.

A bug is a module here with a function `apply`, called in the service's process before the service starts: it replaces one seam of
the product, which itself knows nothing of bugs.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class Bug(NamedTuple):
    """One bug: whose, what it breaks, and which faults bring it out."""

    service: str
    what: str
    only: tuple[str, ...] = ()
    """Kinds of fault (as `--only` takes them) under which it shows soonest."""


BUGS: Final[dict[str, Bug]] = {
    "at_least_once": Bug(
        "gateway",
        "outputs and offsets are not one transaction",
        ("kill:gateway-0", "kill:gateway-1"),
    ),
    "offsets_before_outputs": Bug(
        "gateway",
        "offsets are committed before the transaction that holds their outputs",
        ("kill:gateway-0", "kill:gateway-1"),
    ),
}
"""Module's name → bug."""


def replace(owner: Any, name: str, new: Any) -> Any:
    """Put `new` in the place of `owner.name`, and return what was there."""
    original = getattr(owner, name)
    setattr(owner, name, new)
    return original
