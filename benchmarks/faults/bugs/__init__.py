"""Seeded bugs: each takes one guarantee out of one service, so that the harness has something to find.

A bug is a module here with a function `apply`, called in the service's process before the service starts: it replaces one seam of
the product, which itself knows nothing of bugs. Where a second guard makes the loss of the first harmless, both are taken away, and
the bug says so. `table` lists them with the faults that bring each out soonest.
"""

from __future__ import annotations

from collections.abc import Iterable
from inspect import Parameter, isfunction, signature
from typing import Any, Final

from warehouse.migrate import Migration

_ANYTHING: Final = {"Any", "object", Parameter.empty}


def replace(owner: Any, name: str, new: Any) -> Any:
    """Put `new` in the place of `owner.name`, and return what was there.

    Raises:
        AssertionError: `new` cannot be called like that: the product was rewritten, and the bug with it.
    """
    original = getattr(owner, name)
    if misfit := _misfit(original, new):
        raise AssertionError(f"{name}: {misfit}")
    setattr(owner, name, new)
    return original


def _misfit(original: Any, new: Any) -> str:
    """Why `new` cannot be called with what `original` takes, or says that it takes something else; of a class, its methods. "" if it can."""
    if isinstance(original, type):
        methods = [name for name, each in vars(original).items() if isfunction(each) and hasattr(new, name)]
        found = {name: _misfit(getattr(original, name), getattr(new, name)) for name in methods}
        return ", ".join(f"{name}: {why}" for name, why in found.items() if why)
    if not callable(original):
        return ""
    parameters = list(signature(original).parameters.values())
    positional = [
        None for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    named = {each.name: None for each in parameters if each.kind is each.KEYWORD_ONLY}
    try:
        signature(new).bind(*positional, **named)
    except TypeError as error:
        return str(error)
    both = zip(parameters, signature(new).parameters.values(), strict=False)
    return ", ".join(
        f"{mine.name} is {mine.annotation}, not {theirs.annotation}"
        for theirs, mine in both
        if not {mine.annotation, theirs.annotation} & _ANYTHING and mine.annotation != theirs.annotation
    )


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
