"""What the sink would have written of one model, and what a history then sees."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import numpy as np
from clickhouse_connect.driver.client import Client

from training.history import History

START_MS = 1_700_000_000_000


class Warehouse:
    """Observations and outcomes of one model of its own, written as the sink would."""

    def __init__(self, client: Client, model: str) -> None:
        self.client, self.model = client, model
        self.ids: list[uuid.UUID] = []

    def observe(self, count: int) -> None:
        """`count` more rows."""
        first = len(self.ids)
        self.ids += [uuid.uuid4() for _ in range(count)]
        self.insert_observations(range(first, first + count))

    def insert_observations(self, numbers: range) -> None:
        """The rows `numbers`, requested a second apart, `x` being their number."""
        self._insert(
            "observations",
            [
                {
                    "prediction_id": self.ids[n], "model": self.model, "role": "live", "status": "answered",
                    "requested_at": at(n * 1000), "observed_at": at(n * 1000), "numbers": [float(n), float("nan")],
                    "texts": [f"text {n}"],
                }
                for n in numbers
            ],
        )  # fmt: skip

    def label(
        self,
        numbers: range,
        joined_ms: int,
        truth: str = "yes",
        revision: int = 0,
        partition: int = 0,
        role: str = "live",
    ) -> None:
        """Labels of the rows `numbers`, joined a millisecond apart from `joined_ms` on (relative to the start)."""
        self._insert(
            "outcomes",
            [
                {
                    "prediction_id": self.ids[n], "model": self.model, "role": role, "truth": truth, "label": "no", "loss": 0.5,
                    "revision": revision, "requested_at": at(n * 1000), "joined_at": at(joined_ms + place),
                    "feedback_partition": partition, "arm": role,
                }
                for place, n in enumerate(numbers)
            ],
        )  # fmt: skip

    def _insert(self, table: str, records: list[dict[str, Any]]) -> None:
        self.client.insert(
            f"internal.{table}", [list(record.values()) for record in records], column_names=list(records[0])
        )


def at(ms: int) -> datetime:
    return datetime.fromtimestamp((START_MS + ms) / 1000, UTC)


def labelled(history: History, through_ms: int, **changes: int) -> dict[int, int]:
    """x → target of the rows that an order with this watermark sees."""
    found = history.labelled(START_MS + through_ms, **changes)
    seen = found.rows(np.arange(len(found)))
    assert seen.columns.texts.to_pylist() == [f"text {int(x)}" for x in seen.columns.numbers[:, 0]]
    return {int(x): int(target) for x, target in zip(seen.columns.numbers[:, 0], seen.targets, strict=True)}
