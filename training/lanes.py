"""The lanes of training: each is a service, and a consumer group of the same name, that takes some kinds of orders."""

from collections.abc import Mapping
from typing import Final

from schemas.events import RetrainKind

UPDATES: Final = "training"
MAJORS: Final = "majors"
LANES: Final[Mapping[str, frozenset[RetrainKind]]] = {
    UPDATES: frozenset({"update"}),
    MAJORS: frozenset({"initial", "major"}),
}
"""Service → the orders that it takes."""
