"""ADWIN over a stream of errors: where their mean changed, and which way.

A thin use of `river.drift.ADWIN` (Bifet and Gavalda, *Learning from time-changing data with adaptive windowing*, SDM 2007). Its bound
is for values in [0, 1] and one test; under continuous monitoring its false-alarm rate is near delta only in practice, and for
squared errors, which have no bound, only in spirit: a heuristic. The one place where values are taken one by one: the window
depends on each.
"""

from __future__ import annotations

from math import log, sqrt
from typing import Any, NamedTuple

from river.drift import ADWIN


class Change(NamedTuple):
    """The mean changed."""

    before: float
    """Mean of what was dropped from the window."""
    after: float
    """Mean of what was kept: the present level."""
    rows_before: int
    rows_after: int
    threshold: float
    """The difference of means that these numbers of rows make significant."""

    @property
    def worse(self) -> bool:
        """Whether errors became more: a fall is good news, not drift to be alarmed about."""
        return self.after > self.before


class LossDetector:
    """The state of one ADWIN, which `to_bytes` and the constructor carry over a restart."""

    def __init__(self, delta: float, state: bytes = b"") -> None:
        self._delta = delta
        detector: Any = ADWIN  # published half typed
        self._adwin = detector(delta=delta)
        if state:
            self._adwin._helper.__setstate__(state)

    @property
    def rows(self) -> int:
        """Rows in the window."""
        return int(self._adwin.width)

    @property
    def mean(self) -> float:
        """Mean error of the window."""
        return float(self._adwin.estimation)

    def update(self, errors: list[float]) -> list[Change]:
        """Take `errors` in order; return the changes found, oldest first."""
        found = []
        adwin = self._adwin
        for error in errors:
            rows, total, variance = adwin.width, adwin.total, adwin.variance
            adwin.update(error)
            if adwin.drift_detected:
                found.append(self._change(rows + 1, total + error, variance))
        return found

    def to_bytes(self) -> bytes:
        """The state, a few kilobytes."""
        return bytes(self._adwin._helper.__getstate__())

    def _change(self, rows: float, total: float, variance: float) -> Change:
        kept = self._adwin.width
        dropped = rows - kept
        # The bound that ADWIN cuts at, for the cut that was made.
        inverse = 1.0 / dropped + 1.0 / kept
        confidence = log(2.0 * log(rows) / self._delta)
        return Change(
            before=(total - self._adwin.total) / dropped,
            after=self._adwin.estimation,
            rows_before=int(dropped),
            rows_after=int(kept),
            threshold=sqrt(2.0 * inverse * variance * confidence) + 2.0 / 3.0 * inverse * confidence,
        )
