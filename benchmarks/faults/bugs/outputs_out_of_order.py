"""The answers of a slice are written in another order than that of its requests."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.faults.bugs import replace
from runtime.transactions import TransactionalProducer


def apply() -> None:
    """Write each run from its end."""

    def backwards(
        self: TransactionalProducer, topic: str, values: Sequence[bytes], keys: Sequence[bytes | None], partition: int
    ) -> None:  # fmt: skip
        original(self, topic, values[::-1], keys[::-1], partition)

    original = replace(TransactionalProducer, "produce_run", backwards)
