"""One source partition of `observations` or `outcomes` → partials. Metrics and drift read the same records: they are two parts of
one processor, with one offset and one transactional producer, so that a worker holds half as many of those."""

from __future__ import annotations

import logging
from typing import Final

import msgspec
import pyarrow as pa

from runtime.telemetry import counter
from schemas import arrow
from schemas.errors import Rejection
from schemas.events import Partial
from schemas.topics import OBSERVATIONS, OUTCOMES, PARTIALS
from streams.worker.drift import Drift
from streams.worker.metrics import Metrics
from streams.worker.models import Models
from streams.worker.state import Drained, Record

log = logging.getLogger(__name__)

NAME: Final = "measure"
GATHER_ROWS: Final = 32_768
GATHER_BYTES: Final = 16 * 1024 * 1024
"""Of records, which are held whole. To measure a batch takes two milliseconds beside what its rows take, so many are measured at once: no
partial is written before the next save anyway."""
_KEY: Final = frozenset({"model", "requested_at", "role", "arm", "version", "segments", "scores"})
READS: Final = {
    OBSERVATIONS.name: _KEY | {"status", "observed_at", "numbers", "texts", "attempt"},
    OUTCOMES.name: _KEY | {
        "revision", "truth", "previous_truth", "label", "correct", "loss", "previous_loss", "brier", "previous_brier",
        "labeled_at",
    },
}  # fmt: skip
"""The columns that are read: a batch may have more, written by a later release, or an earlier one."""


class Measure:
    """The processor of one source partition.

    It keeps nothing between saves: a partial is the sum of what came since the last one, and it is written in one transaction
    with the offset that it reaches to, so each row is in exactly one partial. Windows are kept once, by the merge stage.
    """

    name = NAME

    def __init__(self, models: Models, topic: str, partition: int) -> None:
        self._models = models
        self._source = f"{topic}:{partition}"
        self._observations = topic == OBSERVATIONS.name
        schema = arrow.OBSERVATIONS if self._observations else arrow.OUTCOMES
        self._columns = sorted(READS[OBSERVATIONS.name if self._observations else OUTCOMES.name])
        self._wanted = arrow.part_of(schema, (name for name in self._columns if name != "attempt"))
        self._metrics = Metrics()
        self._drift = Drift(models)
        self._held: list[pa.RecordBatch] = []
        self._held_rows = self._held_bytes = 0

    def restore(self, own: bytes, entries: dict[str, bytes]) -> None:
        """Nothing to restore: what is not in a partial comes again."""

    def apply(self, value: bytes) -> None:
        """Add one micro-batch. They are gathered: a batch of three rows costs as much to measure as one of a thousand."""
        try:
            batch = arrow.decode_batch(value, self._wanted)
        except Rejection as error:
            # Written by our own gateway or not at all; the sink halts on it and keeps it.
            log.error("%s: a record is not measured: %s", self._source, error)
            return
        if self._observations and "attempt" not in batch.schema.names:
            # Written by a release that knew no redrives.
            batch = batch.append_column("attempt", pa.repeat(pa.scalar(0, pa.uint8()), len(batch)))
        batch = batch.select(self._columns)
        if self._held and batch.schema != self._held[0].schema:
            self._measure()
        self._held.append(batch)
        self._held_rows += len(batch)
        self._held_bytes += len(value)
        if self._held_rows >= GATHER_ROWS or self._held_bytes >= GATHER_BYTES:
            self._measure()
        counter("tidemill_observed_rows_total").labels(NAME).inc(len(batch))

    def _measure(self) -> None:
        if not self._held:
            return
        batch = pa.concat_batches(self._held)
        self._held, self._held_rows, self._held_bytes = [], 0, 0
        for model in arrow.texts_in(batch["model"]):
            spec = self._models.spec(model)
            if spec is None:
                continue
            rows = arrow.rows_with(batch, model=model)
            if self._observations:
                self._metrics.observe(spec, rows)
                self._drift.observe(spec, rows)
            else:
                self._metrics.label(spec, rows)
                self._drift.label(spec, rows)

    @property
    def size(self) -> int:
        """Partials that a save would write."""
        return self._metrics.size + self._drift.size

    def drain(self, next_offset: int) -> Drained:
        """The partials since the last save."""
        self._measure()
        partials: list[Partial] = [
            *self._metrics.drain(self._source, next_offset),
            *self._drift.drain(self._source, next_offset),
        ]
        encode = msgspec.json.Encoder().encode
        return Drained(
            [Record(PARTIALS.name, partial.model.encode(), encode(partial)) for partial in partials], b"", {}
        )
