"""ADWIN over a stream of errors: where their mean changed, and which way.

River's ADWIN (Bifet and Gavalda, *Learning from time-changing data with adaptive windowing*, SDM 2007) says that something changed;
it drops its oldest buckets and does not say where. So the newest errors are kept beside it, the cut that explains the change best
is looked for among them, and the window begins anew after that cut: one change is one finding, with the levels on both sides.

It is the compiled window of river itself, because `river.drift` imports scikit-learn and pandas (4 s, 180 MiB) and its class cannot be
carried over a restart. ADWIN's bound is for values in [0, 1] and holds for one test; under continuous monitoring its false-alarm rate is near
delta only in practice, and for squared errors, which have no bound, only in spirit: a heuristic. The one place where values are
taken one by one: the window depends on each.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from river._river_rust.drift import AdaptiveWindowing

CLOCK: Final = 32
"""Errors between two tests."""
RECENT_ROWS: Final = 4096
"""Errors among which a cut is looked for."""
_MAX_BUCKETS, _MIN_WINDOW_ROWS, _GRACE_ROWS = 5, 5, 10
_LENGTH_BYTES: Final = 4


class Change(NamedTuple):
    """The mean changed."""

    before: float
    """Mean error before the cut, within the window."""
    after: float
    """Mean error since: the present level."""
    rows_before: int
    rows_after: int
    threshold: float
    """ADWIN's bound for a difference of means of these numbers of rows."""

    @property
    def worse(self) -> bool:
        """Whether errors became more: a fall is good news, not drift to be alarmed about."""
        return self.after > self.before


class LossDetector:
    """The state of one ADWIN, which `to_bytes` and the constructor carry over a restart.

    >>> detector = LossDetector(delta=0.002)
    >>> [change] = detector.update([0.0] * 200 + [1.0] * 100)
    >>> change.worse, change.before, change.after
    (True, 0.0, 1.0)
    """

    def __init__(self, delta: float, state: bytes = b"") -> None:
        self._delta = delta
        self._window: Any = self._new_window()
        self._recent: list[float] = []
        if state:
            length = int.from_bytes(state[:_LENGTH_BYTES])
            self._window.__setstate__(state[_LENGTH_BYTES : _LENGTH_BYTES + length])
            self._recent = np.frombuffer(state[_LENGTH_BYTES + length :], dtype="<f8").tolist()

    @property
    def rows(self) -> int:
        """Rows in the window."""
        return int(self._window.get_width())

    @property
    def mean(self) -> float:
        """Mean error of the window, 0 if it is empty."""
        return float(self._window.get_total()) / self.rows if self.rows else 0.0

    def update(self, errors: list[float]) -> list[Change]:
        """Take `errors` in order; return the changes found, oldest first."""
        found = []
        for error in errors:
            self._recent.append(error)
            if self._window.update(error):
                found.append(self._cut())
        del self._recent[:-RECENT_ROWS]
        return found

    def to_bytes(self) -> bytes:
        """The state, at most 40 kB."""
        window = bytes(self._window.__getstate__())
        return len(window).to_bytes(_LENGTH_BYTES) + window + np.array(self._recent, dtype="<f8").tobytes()

    def _new_window(self) -> Any:
        return AdaptiveWindowing(self._delta, CLOCK, _MAX_BUCKETS, _MIN_WINDOW_ROWS, _GRACE_ROWS)

    def _cut(self) -> Change:
        """Find the cut and begin anew after it."""
        recent = np.array(self._recent[-RECENT_ROWS:])
        change = best_cut(recent, self._delta)
        self._recent = recent[change.rows_before :].tolist()
        self._window = self._new_window()
        for error in self._recent:
            self._window.update(error)
        return change


def best_cut(errors: NDArray[np.float64], delta: float) -> Change:
    """The cut of `errors`, shape (rows,), whose difference of means exceeds ADWIN's bound by the largest factor."""
    n = len(errors)
    before = np.arange(_MIN_WINDOW_ROWS, n - _MIN_WINDOW_ROWS + 1)
    after = n - before
    sums = np.cumsum(errors)
    mean_before = sums[before - 1] / before
    mean_after = (sums[-1] - sums[before - 1]) / after
    inverse = 1.0 / before + 1.0 / after
    confidence = np.log(2.0 * np.log(n) / delta)
    bound = np.sqrt(2.0 * inverse * errors.var() * confidence) + 2.0 / 3.0 * inverse * confidence
    at = int(np.argmax(np.abs(mean_after - mean_before) / bound))
    return Change(
        before=float(mean_before[at]),
        after=float(mean_after[at]),
        rows_before=int(before[at]),
        rows_after=int(after[at]),
        threshold=float(bound[at]),
    )
