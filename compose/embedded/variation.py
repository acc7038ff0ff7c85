"""How a stack may differ from the ordinary one, as data: for harnesses that break it on purpose, and for whoever wants more replicas."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from schemas.errors import UserError

VARIABLE: Final = "TIDEMILL_VARIATION"
"""Environment variable of the supervisor: the JSON file that says how its stack differs."""


class Listener(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One more door of the broker: whoever comes in through it is told to come back to `advertised_port`, such as a proxy's."""

    port: int
    advertised_port: int


class Variation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Differences by name of service (`gateway`), or of process (`gateway-1`, `clickhouse`) for `held`."""

    replicas: dict[str, int] = {}
    held: list[str] = []
    """Processes that are not started until somebody asks the supervisor to."""
    arguments: dict[str, list[str]] = {}
    """Service → what follows `python -m` instead of its own."""
    environment: dict[str, dict[str, str]] = {}
    """Service → variables beyond those that all have."""
    kafka_listeners: dict[str, Listener] = {}
    """Listener's name (letters) → where."""


def variation() -> Variation:
    """The variation that this process's environment names; an ordinary stack if it names none.

    Raises:
        UserError: the file is missing, or says something else.
    """
    file = os.environ.get(VARIABLE)
    if not file:
        return Variation()
    try:
        return msgspec.json.decode(Path(file).read_bytes(), type=Variation)
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"{VARIABLE}={file}: {error}") from None
