"""The gateway commits offsets by itself, and then writes what belongs to them: whoever dies in between has lost it."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaException

from benchmarks.faults.bugs import replace
from inference import commit
from runtime.transactions import TransactionalProducer, TransactionLost


def apply() -> None:
    """Commit the offsets of a transaction before it is opened, and none in it."""

    def commit_offsets_first(self: Any) -> int:
        slices = self._progress.completed(commit.TRANSACTION_ROWS, commit.TRANSACTION_BYTES)
        if slices:
            try:
                self._source._client.commit(offsets=commit._offsets(slices), asynchronous=False)
            except KafkaException as error:
                raise TransactionLost(f"offsets not committed: {error.args[0].str()}") from error
        return int(original(self))

    def no_offsets(_self: Any, _places: object, _metadata: object) -> None:
        """They are committed already."""

    original = replace(commit.Committer, "commit", commit_offsets_first)
    replace(TransactionalProducer, "send_offsets", no_offsets)
