"""Partials of all source partitions → windows of a model, kept until their labels are mature.

A window is kept for `feedback.matures_after_sec` after its end, at most `MAX_WINDOWS` keys over all models, oldest out first. A label
that comes later still reaches `outcomes` and its table; here it is counted as late and changes no window, since the sums that it
would have to be added to are gone.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
import numpy as np

from schemas.events import MetricPartial, WindowMetrics
from schemas.identity import name_id
from schemas.spec import ModelSpec
from stats.classification import report
from stats.histogram import LATENCY_EDGES_MS, quantile
from stats.partials import Sums, WindowKey

MAX_WINDOWS: Final = 50_000


class ModelWindow(NamedTuple):
    """One window of one arm and segment of a model."""

    model: str
    window_sec: int
    key: WindowKey

    @property
    def end_ms(self) -> int:
        """Where it ends in event time."""
        return self.key.window_start_ms + self.window_sec * 1000


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """A window at rest."""

    window: ModelWindow
    rows: int
    rejected: int
    labelled: int
    correct: int
    loss_sum: float
    brier_sum: float
    confusion: list[int]
    latency_ms: list[int]


class Windows:
    """All windows of one partition of `partials`."""

    def __init__(
        self, max_windows: int = MAX_WINDOWS, closed_through_ms: dict[str, int] | None = None
    ) -> None:
        self.closed_through_ms: dict[str, int] = closed_through_ms or {}
        """Model → end of the newest window that was let go: what is not held before that is closed, not new. Goes into the save."""
        self._sums: dict[ModelWindow, Sums] = {}
        self._changed: set[ModelWindow] = set()
        self._newest_ms: dict[str, int] = {}
        self._matures_ms: dict[str, int] = {}
        self._due = False
        self._max_windows = max_windows

    def __len__(self) -> int:
        return len(self._sums)

    @property
    def changed(self) -> int:
        """Windows that changed since the last drain."""
        return len(self._changed)

    def add(self, spec: ModelSpec, partial: MetricPartial, now_ms: int) -> bool:
        """Add a partial; False if its window is closed for good."""
        key = WindowKey(partial.window_start_ms, partial.role, partial.arm, partial.version, partial.segment)
        window = ModelWindow(partial.model, partial.window_sec, key)
        self._matures_ms[partial.model] = spec.feedback.matures_after_sec * 1000
        # A clock far ahead at one producer must not close everybody's windows; a replay of old events must not be late by the wall clock.
        newest_ms = min(max(window.end_ms, self._newest_ms.get(partial.model, 0)), now_ms)
        if newest_ms > self._newest_ms.get(partial.model, 0):
            self._newest_ms[partial.model] = newest_ms
            self._due = True
        if self._closed(window):
            return False
        found = Sums(
            rows=partial.rows,
            rejected=partial.rejected,
            labelled=partial.labelled,
            correct=partial.correct,
            loss_sum=partial.loss_sum,
            brier_sum=partial.brier_sum,
            confusion=np.array(partial.confusion, dtype=np.int64),
            latency_ms=np.array(partial.latency_ms, dtype=np.int64),
        )
        held = self._sums.setdefault(window, Sums())
        if len(held.confusion) not in (0, len(found.confusion)) and len(found.confusion):
            # The spec's classes changed while the window was open: what was counted is of other classes.
            held.confusion = np.zeros(0, dtype=np.int64)
        held.add(found)
        self._changed.add(window)
        return True

    def restore(self, entry: bytes) -> None:
        """Take a window as a save had left it."""
        kept = msgspec.msgpack.decode(entry, type=_Kept)
        self._sums[kept.window] = Sums(
            rows=kept.rows,
            rejected=kept.rejected,
            labelled=kept.labelled,
            correct=kept.correct,
            loss_sum=kept.loss_sum,
            brier_sum=kept.brier_sum,
            confusion=np.array(kept.confusion, dtype=np.int64),
            latency_ms=np.array(kept.latency_ms, dtype=np.int64),
        )
        newest = self._newest_ms.get(kept.window.model, 0)
        self._newest_ms[kept.window.model] = max(newest, kept.window.end_ms)

    def drain(self, revision: int, now_ms: int) -> tuple[list[WindowMetrics], dict[str, bytes | None]]:
        """Metrics of the windows that changed since the last call, and these windows at rest by entry (None: closed for good)."""
        changed, self._changed = self._changed, set()
        metrics = [window_metrics(window, self._sums[window], revision, now_ms) for window in changed]
        entries: dict[str, bytes | None] = {_entry(window): self._at_rest(window) for window in changed}
        for window in self._closing():
            del self._sums[window]
            through_ms = max(window.end_ms, self.closed_through_ms.get(window.model, 0))
            self.closed_through_ms[window.model] = through_ms
            entries[_entry(window)] = None
        return metrics, entries

    def _closed(self, window: ModelWindow) -> bool:
        newest, matures = self._newest_ms.get(window.model, 0), self._matures_ms.get(window.model)
        if matures is not None and window.end_ms + matures < newest:
            return True
        return window not in self._sums and window.end_ms <= self.closed_through_ms.get(window.model, 0)

    def _closing(self) -> list[ModelWindow]:
        """Windows that are mature, and the oldest beyond the cap."""
        over = len(self._sums) - self._max_windows
        if not self._due and over <= 0:
            return []
        self._due = False
        closing = [window for window in self._sums if self._closed(window)]
        over -= len(closing)
        if over > 0:
            already = set(closing)
            left = sorted(
                (window for window in self._sums if window not in already), key=lambda window: window.end_ms
            )
            # A tenth more than needed, so that the sort is not repeated at every save.
            closing += left[: over + self._max_windows // 10]
        return closing

    def _at_rest(self, window: ModelWindow) -> bytes:
        sums = self._sums[window]
        return msgspec.msgpack.encode(
            _Kept(
                window,
                sums.rows,
                sums.rejected,
                sums.labelled,
                sums.correct,
                sums.loss_sum,
                sums.brier_sum,
                sums.confusion.tolist(),
                sums.latency_ms.tolist(),
            )
        )


def window_metrics(window: ModelWindow, sums: Sums, revision: int, now_ms: int) -> WindowMetrics:
    """The metrics of one window's sums; what nothing is known of is None."""
    key = window.key
    width = round(len(sums.confusion) ** 0.5)
    classes = report(sums.confusion.reshape(width, width)) if width else None
    labelled = sums.labelled
    return WindowMetrics(
        event_id=str(name_id("metrics", window.model, window.window_sec, *key, revision)),
        model=window.model,
        at_ms=now_ms,
        window_start_ms=key.window_start_ms,
        window_sec=window.window_sec,
        role=key.role,
        arm=key.arm,
        version=key.version,
        segment=key.segment,
        revision=revision,
        rows=sums.rows,
        rejected=sums.rejected,
        labelled=labelled,
        correct=sums.correct,
        accuracy=sums.correct / labelled if labelled > 0 and width else None,
        f1_macro=classes.f1_macro if classes else None,
        log_loss=sums.loss_sum / labelled if labelled > 0 else None,
        brier=sums.brier_sum / labelled if labelled > 0 and width else None,
        latency_p50_ms=quantile(sums.latency_ms, LATENCY_EDGES_MS, 0.5),
        latency_p99_ms=quantile(sums.latency_ms, LATENCY_EDGES_MS, 0.99),
    )


def _entry(window: ModelWindow) -> str:
    return "window/" + "\x1f".join(str(part) for part in (window.model, window.window_sec, *window.key))
