"""ClickHouse remembers the token of one block only, and by the second try others have come. Two guards are gone: nobody counts either."""

from __future__ import annotations

from typing import Final

from benchmarks.faults.bugs import changed, replace, uncounted
from warehouse import migrate
from warehouse.migrate import Migration

WINDOW: Final = "non_replicated_deduplication_window = "


def apply() -> None:
    """Make the tables so, and insert again without a question."""
    uncounted.apply()

    def narrow() -> list[Migration]:
        return changed(original(), f"{WINDOW}10000", f"{WINDOW}1")

    original = replace(migrate, "migrations", narrow)
