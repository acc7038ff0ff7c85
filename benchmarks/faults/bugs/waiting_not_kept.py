"""Labels that wait for their prediction wait in memory only, while their offsets are committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as changed
from typing import Any

from benchmarks.faults.bugs import replace
from runtime.positions import Place
from streams.labels.batch import Output
from streams.labels.loop import Labels


def apply() -> None:
    """Write no state."""

    def stateless(self: Any, output: Output, places: Mapping[Place, int], metadata: object) -> None:
        original(self, changed(output, state={}), places, metadata)

    original = replace(Labels, "_commit", stateless)
