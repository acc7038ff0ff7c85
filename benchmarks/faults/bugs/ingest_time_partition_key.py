"""Observations lie in partitions by the time of their insert: a second try falls into another one, where nobody knows its token.

Two guards are gone: nobody counts either.
"""

from __future__ import annotations

from typing import Final

from benchmarks.faults.bugs import changed, replace, uncounted
from warehouse import migrate
from warehouse.migrate import Migration

TABLE: Final = "CREATE TABLE IF NOT EXISTS internal.observations ("
KEY: Final = "PARTITION BY toYYYYMM(observed_at)"


def apply() -> None:
    """Make the table so, and insert again without a question."""
    uncounted.apply()

    def by_insert_time() -> list[Migration]:
        with_column = changed(original(), TABLE, f"{TABLE}\n    `inserted_at` DateTime DEFAULT now(),")
        return changed(with_column, KEY, "PARTITION BY inserted_at")

    original = replace(migrate, "migrations", by_insert_time)
