"""Commit: one Kafka transaction over predictions, observations, dead letters and consumed offsets. Runs in a thread of its own.

The offsets go first. While the broker still writes the markers of the transaction before, it takes nothing of the next: librdkafka asks
again for offsets after `retry.backoff.ms`, and for partitions after 20 ms, whatever it is told.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
import pyarrow as pa
from confluent_kafka import TopicPartition

from inference.limits import Tally, advance, encode_tally
from inference.model import Model
from inference.observe import shared_values
from inference.progress import Assignment, Observed, Output, Progress, Slice
from inference.source import GROUP, Source
from runtime import telemetry
from runtime.clock import Clock
from runtime.dead_letters import produce_dead_letter
from runtime.headers import Headers
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer, TransactionLost
from schemas.events import Alert
from schemas.topics import ALERTS, OBSERVATIONS

TRANSACTION_ROWS: Final = 16_384
TRANSACTION_BYTES: Final = 12 * 1024 * 1024
"""Of predictions and observations: the Kafka client holds a copy of them until they are committed."""


class Committer:
    """Commits what is complete. The order: begin, offsets, outputs in the order of their offsets, commit, and only then forget."""

    def __init__(
        self,
        settings: Settings,
        source: Source,
        progress: Progress,
        models: Mapping[str, Model],
        transaction: threading.Lock,
        clock: Clock,
    ) -> None:
        """`models` by request topic. `transaction` is held from the choice of the slices to the end of the commit, so that no
        partition is given away in between."""
        self._source = source
        self._progress = progress
        self._models = models
        self._transaction = transaction
        self._clock = clock
        self._crossing: list[Slice] = []
        self._turn = 0
        """Whose turn it is, of the partitions of observations."""
        self._producer = TransactionalProducer(
            settings, f"{GROUP}-{settings.slot}",
            **{"delivery.report.only.error": True, "linger.ms": 0.5},
        )  # fmt: skip

    def commit(self) -> int:
        """Commit about `TRANSACTION_ROWS` of the completed rows, or `TRANSACTION_BYTES` of their outputs; return how many rows it were.

        Raises:
            TransactionLost: rewind.
            Fenced: stop.
        """
        with self._transaction:
            slices = self._within_limits(self._progress.completed(TRANSACTION_ROWS, TRANSACTION_BYTES))
            if not slices:
                return 0
            counts = telemetry.counter("tidemill_transactions_total")
            try:
                self._producer.begin()
                self._producer.send_offsets(_offsets(slices), self._source.group_metadata)
                self._produce(slices)
                with telemetry.histogram("tidemill_commit_seconds").labels("gateway").time():
                    self._producer.commit()
            except TransactionLost:
                counts.labels("gateway", "lost").inc()
                # Their partitions begin anew too.
                self._crossing.clear()
                raise
            counts.labels("gateway", "committed").inc()
            self._progress.confirm(slices)
        for piece in slices:
            self._count(piece)
        return sum(piece.rows for piece in slices)

    def take_halted(self) -> list[Slice]:
        """The slices that would have crossed a limit, since the last call."""
        taken, self._crossing = self._crossing, []
        return taken

    def alert(self, alert: Alert) -> None:
        """Write an alert, in a transaction of its own.

        Raises:
            TransactionLost: it is not written.
            Fenced: stop.
        """
        with self._transaction:
            self._producer.begin()
            self._producer.produce(ALERTS.name, msgspec.json.encode(alert), alert.model.encode())
            self._producer.commit()

    def _within_limits(self, slices: list[Slice]) -> list[Slice]:
        """The slices that may be committed. A partition halts before the one that crosses a limit."""
        kept = []
        tallies: dict[Assignment, Tally] = {}
        for piece in slices:
            assignment, output = piece.assignment, piece.output
            if assignment.halted or output is None:
                continue
            limits = self._models[assignment.topic].spec.dead_letters
            before = tallies.get(assignment, assignment.tally)
            piece.tally, why = advance(before, piece.rows, output.rejected, limits)
            if why:
                reasons = ", ".join(f"{reason} {count}" for reason, count in output.reasons.most_common(3))
                example = output.dead_letters[0].rejection.message
                assignment.halted = f"{why}: {reasons}, such as {example}"
                self._crossing.append(piece)
            else:
                tallies[assignment] = piece.tally
                kept.append(piece)
        return kept

    def _produce(self, slices: list[Slice]) -> None:
        """One record of each partition first: librdkafka registers with the transaction what partitions it has heard of, and those that come
        while it waits for the broker's answer have to wait for one of their own."""
        observations = self._observations(slices)
        first = next(observations)
        heads = {piece.assignment: piece for piece in reversed(slices)}
        for piece in heads.values():
            self._answer(piece, 0, 1)
        self._producer.produce(*first)
        for piece in slices:
            output, assignment = _complete(piece), piece.assignment
            self._answer(piece, 1 if heads[assignment] is piece else 0, None)
            for letter in output.dead_letters:
                produce_dead_letter(
                    self._producer, letter.message, letter.rejection, stage="gateway",
                    model=self._models[assignment.topic].spec.name,
                    topic_id=assignment.topic_id, now_ms=self._clock(), origin=letter.origin,
                )  # fmt: skip
            self._producer.poll()
        for record in observations:
            self._producer.produce(*record)

    def _answer(self, piece: Slice, start: int, end: int | None) -> None:
        """Write a slice's predictions from `start` to `end`."""
        output, assignment = _complete(piece), piece.assignment
        topic, partition = self._models[assignment.topic].predictions, assignment.partition
        predictions, keys = output.predictions[start:end], output.keys[start:end]
        if output.headers:
            for index, (value, key) in enumerate(zip(predictions, keys, strict=True), start):
                self._producer.produce(topic, value, key, output.headers.get(index), partition)
        else:
            self._producer.produce_run(topic, predictions, keys, partition)

    def _observations(self, slices: list[Slice]) -> Iterator[tuple[str, pa.Buffer, bytes, Headers, int]]:
        """Topic, value, key, headers and partition of each record: one for what is committed here of a micro-batch.

        All of a transaction lie in one partition, the next in the next: of each that it writes to the broker has to be asked, and to mark the end.
        """
        self._turn = (self._turn + 1) % self._producer.partitions(OBSERVATIONS.name)
        shares: dict[Observed, list[Slice]] = defaultdict(list)
        for piece in slices:
            shares[_complete(piece).observed].append(piece)
        for observed, pieces in shares.items():
            model = self._models[pieces[0].assignment.topic].spec.name.encode()
            for value in shared_values(observed, [_complete(piece).place for piece in pieces]):
                yield OBSERVATIONS.name, value, model, observed.headers, self._turn

    def _count(self, piece: Slice) -> None:
        if piece.output is None:
            return
        model = self._models[piece.assignment.topic].spec.name
        reasons = piece.output.reasons
        rows = telemetry.counter("tidemill_requests_total")
        rows.labels(model, "answered").inc(piece.rows - reasons.total())
        rows.labels(model, "rejected").inc(reasons.total())
        for reason, count in reasons.items():
            telemetry.counter("tidemill_rejections_total").labels(model, reason).inc(count)

    def close(self) -> None:
        """Abort what is open."""
        self._producer.close()


def _complete(piece: Slice) -> Output:
    if piece.output is None:
        raise AssertionError("an incomplete slice was chosen")
    return piece.output


def encode_metadata(piece: Slice) -> str:
    """Topic id and, if there is anything to remember, the tally."""
    return f"{piece.assignment.topic_id} {encode_tally(piece.tally)}".rstrip()


def _offsets(slices: list[Slice]) -> list[TopicPartition]:
    """Next offset of each partition. The metadata names the topic's id (offsets of a deleted topic mean nothing in its successor) and
    holds the partition's tally of rejections."""
    newest = {(piece.assignment.topic, piece.assignment.partition): piece for piece in slices}
    return [
        TopicPartition(topic, partition, piece.next_offset, metadata=encode_metadata(piece))
        for (topic, partition), piece in newest.items()
    ]
