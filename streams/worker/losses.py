"""Loss drift: the live arms' errors of a model, merged over source partitions, by ADWIN.

One detector per model and live major: an update continues its major's stream, a new major begins with an empty window. Errors are taken
in the order of their labels within what one save holds; across saves in the order of arrival. While the stream is caught up
that is the order of the labels up to half a second; after a pause, batches of different partitions may interleave otherwise.

A rise is alarmed about once: again only if the level rises beyond the one alarmed about, or after it fell (`loss_recovered`).
"""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.artifact import parse_version
from schemas.events import Alert, DriftEvidence, LossPartial
from schemas.identity import name_id
from schemas.spec import ModelSpec
from stats.adwin import Change, LossDetector

KEPT_MAJORS: Final = 2


class Stream(msgspec.Struct):
    """The errors of one major of a model."""

    adwin: bytes = b""
    seen: int = 0
    """Errors taken since the major began."""
    alerted_mean: float = -1.0
    """The level that was alarmed about, -1 if none is."""


class Losses:
    """All detectors of one partition of `partials`; `state` goes into the save."""

    def __init__(self, state: dict[str, Stream] | None = None) -> None:
        self.state: dict[str, Stream] = state or {}
        """`model/major` → stream, the one used last at the end."""
        self._pending: list[tuple[ModelSpec, LossPartial]] = []

    @property
    def pending(self) -> int:
        """Batches not yet taken."""
        return len(self._pending)

    def add(self, spec: ModelSpec, partial: LossPartial) -> None:
        """Hold a batch until `drain`."""
        self._pending.append((spec, partial))

    def drain(self, now_ms: int) -> tuple[list[DriftEvidence], list[Alert]]:
        """Take what was held, in the order of the labels."""
        pending, self._pending = self._pending, []
        evidence: list[DriftEvidence] = []
        alerts: list[Alert] = []
        for spec, partial in sorted(pending, key=lambda held: held[1].newest_ms):
            major, _ = parse_version(partial.version)
            name = f"{partial.model}/{major}"
            stream = self.state.pop(name, None) or Stream()
            self.state[name] = stream
            self._forget_old(partial.model)
            detector = LossDetector(spec.monitor.drift.adwin_delta, stream.adwin)
            changes = detector.update(partial.errors)
            stream.adwin = detector.to_bytes()
            stream.seen += len(partial.errors)
            for number, change in enumerate(changes):
                event = (partial.model, major, stream.seen, number)
                evidence.append(_evidence(event, partial, change, now_ms))
                alert = _alarm(event, stream, partial, change, now_ms)
                if alert is not None:
                    alerts.append(alert)
        return evidence, alerts

    def _forget_old(self, model: str) -> None:
        of_model = [name for name in self.state if name.partition("/")[0] == model]
        for name in of_model[:-KEPT_MAJORS]:
            del self.state[name]


def _alarm(event: tuple[object, ...], stream: Stream, of: LossPartial, change: Change, now_ms: int) -> Alert | None:  # fmt: skip
    alarmed = stream.alerted_mean >= 0
    if change.worse and (not alarmed or change.before >= stream.alerted_mean):
        stream.alerted_mean = change.after
        return Alert(
            event_id=str(name_id("loss alert", *event)),
            model=of.model,
            at_ms=now_ms,
            kind="loss_drift",
            severity="severe",
            subject="loss",
            version=of.version,
            message=f"{of.model} {of.version}: errors rose from {change.before:.3f} to {change.after:.3f} "
            f"(the last {change.rows_after} labels against {change.rows_before} before)",
            evidence=_numbers(change),
        )
    if not change.worse and alarmed:
        stream.alerted_mean = -1.0
        return Alert(
            event_id=str(name_id("loss recovery", *event)),
            model=of.model,
            at_ms=now_ms,
            kind="loss_recovered",
            severity="minor",
            subject="loss",
            version=of.version,
            message=f"{of.model} {of.version}: errors fell from {change.before:.3f} to {change.after:.3f}",
            evidence=_numbers(change),
        )
    return None


def _evidence(event: tuple[object, ...], of: LossPartial, change: Change, now_ms: int) -> DriftEvidence:
    return DriftEvidence(
        event_id=str(name_id("adwin", *event)),
        model=of.model,
        at_ms=now_ms,
        window_start_ms=of.newest_ms,
        window_sec=0,
        version=of.version,
        test="adwin",
        subject="loss",
        statistic=change.after - change.before,
        threshold=change.threshold,
        rows=change.rows_before + change.rows_after,
        drifted=change.worse,
    )


def _numbers(change: Change) -> dict[str, object]:
    return {"test": "adwin", **change._asdict()}
