"""One partition of `partials` → metrics of windows, drift evidence and alerts.

A model's partials are keyed by it, so all of them, of all sources, lie in one partition: whoever reads that sees the whole model.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from runtime.clock import Clock
from runtime.telemetry import counter
from schemas.events import Alert, DriftEvidence, InputPartial, LossPartial, MetricPartial, Partial
from schemas.topics import ALERTS, DRIFT, METRICS
from streams.worker.inputs import Block, Inputs
from streams.worker.losses import Losses, Stream
from streams.worker.models import Models
from streams.worker.state import Drained, Record
from streams.worker.windows import Windows

log = logging.getLogger(__name__)

NAME: Final = "merge"
_decoder = msgspec.json.Decoder(Partial)


class _Own(msgspec.Struct, frozen=True):
    """The small state: everything but the windows."""

    inputs: dict[str, Block]
    losses: dict[str, Stream]
    late_rows: int
    closed_through_ms: dict[str, int] = {}


class Merge:
    """The processor of one partition of `partials`."""

    name = NAME

    def __init__(self, models: Models, clock: Clock, partition: int) -> None:
        self._models = models
        self._clock = clock
        self._partition = partition
        self._windows = Windows()
        self._inputs = Inputs()
        self._losses = Losses()
        self._evidence: list[DriftEvidence] = []
        self._alerts: list[Alert] = []
        self.late_rows = 0
        """Rows and labels whose window had closed when they came."""

    def restore(self, own: bytes, entries: dict[str, bytes]) -> None:
        """Go on from a saved state."""
        saved = msgspec.msgpack.decode(own, type=_Own)
        self._inputs, self._losses = Inputs(saved.inputs), Losses(saved.losses)
        self._windows = Windows(closed_through_ms=saved.closed_through_ms)
        self.late_rows = saved.late_rows
        for entry in entries.values():
            self._windows.restore(entry)

    def apply(self, value: bytes) -> None:
        """Add one partial."""
        try:
            partial = _decoder.decode(value)
        except msgspec.DecodeError as error:
            log.error("%s-%d: a record that is no partial is passed over: %s", NAME, self._partition, error)
            return
        spec = self._models.spec(partial.model)
        if spec is None:
            return
        if isinstance(partial, MetricPartial):
            if not self._windows.add(spec, partial, self._clock()) and partial.segment == "":
                self.late_rows += partial.rows + partial.labelled
        elif isinstance(partial, LossPartial):
            self._losses.add(spec, partial)
        elif isinstance(partial, InputPartial):
            reference = self._models.reference(partial.model, partial.version)
            if reference is not None and reference[0] == partial.artifact:
                evidence, alerts = self._inputs.add(spec, reference[1], partial, self._clock())
                self._evidence += evidence
                self._alerts += alerts
        counter("tidemill_observed_rows_total").labels(NAME).inc()

    @property
    def size(self) -> int:
        """Records that a save would write."""
        return self._windows.changed + self._losses.pending + len(self._evidence) + len(self._alerts)

    def drain(self, next_offset: int) -> Drained:
        """What changed since the last save. The offset is the revision: it grows with every save of this partition."""
        now_ms = self._clock()
        metrics, entries = self._windows.drain(next_offset, now_ms)
        evidence, alerts = self._losses.drain(now_ms)
        evidence, alerts = self._evidence + evidence, self._alerts + alerts
        self._evidence, self._alerts = [], []
        encode = msgspec.json.Encoder().encode
        records = [Record(METRICS.name, event.model.encode(), encode(event)) for event in metrics]
        records += [Record(DRIFT.name, event.model.encode(), encode(event)) for event in evidence]
        records += [Record(ALERTS.name, event.model.encode(), encode(event)) for event in alerts]
        for alert in alerts:
            log.warning("%s", alert.message)
            counter("tidemill_alerts_total").labels(alert.model, alert.kind).inc()
        own = msgspec.msgpack.encode(
            _Own(self._inputs.state, self._losses.state, self.late_rows, self._windows.closed_through_ms)
        )
        return Drained(records, own, entries)
