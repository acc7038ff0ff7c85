"""Replaying a scenario as an ordinary producer would: requests at a rate, each label its number of rows late, predictions read beside.

The schedule is open: a row is sent when its time has come, whether or not earlier ones were answered, so a slow answer is measured and
does not slow the stream. A label is sent right after the request that stands `label_delay_rows` later, at every speed; behind the last request
the schedule goes on for the last labels.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from scenarios.scenario import Scenario
from tidemill import Client, Predictions

TICK_SEC: Final = 0.005
CHUNK_ROWS: Final = 500
"""Rows between two looks at the clock, and at whether to stop."""


@dataclass(frozen=True)
class Progress:
    """How far a replay is."""

    sent: int
    labels: int
    answered: int
    rejected: int
    rows: int
    """To be sent in all."""
    elapsed_sec: float


@dataclass(frozen=True)
class Report:
    """What a replay saw from outside."""

    requests: int
    labels: int
    answered: int
    rejected: int
    repeated: int
    """Predictions beyond the first of a request; 0 unless a guarantee is broken."""
    sent_sec: float
    """From the first request to the last label."""
    answered_sec: float
    """From the first request to the last answer."""
    latency_ms: NDArray[np.float64]
    """From the request record's timestamp to its committed prediction's arrival here, by row; NaN where there is none."""

    @property
    def missing(self) -> int:
        """Requests without an answer or rejection."""
        return self.requests - self.answered - self.rejected

    def latency_percentile_ms(self, percentile: float) -> float:
        """NaN if nothing was answered."""
        known = self.latency_ms[~np.isnan(self.latency_ms)]
        return float(np.percentile(known, percentile)) if len(known) else float("nan")


class _Records:
    """Requests and labels, encoded ahead, so that at full speed the client alone sets the pace."""

    def __init__(self, scenario: Scenario, run: str, first: int, last: int) -> None:
        encoder = msgspec.json.Encoder()
        rows = range(first, last)
        self.ids = [f"{run}{row}" for row in rows]
        self.keys = [scenario.entities[row].encode() for row in rows]
        self.labels = [scenario.labels[row] for row in rows]
        self.requests = [
            encoder.encode({"request_id": request_id, "features": scenario.features(row)})
            for request_id, row in zip(self.ids, rows, strict=True)
        ]


class _Listener(threading.Thread):
    """Reads predictions until every request has its answer, or it is told to end."""

    def __init__(self, predictions: Predictions, ids: list[str]) -> None:
        super().__init__(name="replay-listener", daemon=True)
        self._predictions = predictions
        self._rows = {request_id: row for row, request_id in enumerate(ids)}
        self._ended = threading.Event()
        self._expected = len(ids)
        self.latency_ms = np.full(len(ids), np.nan)
        self.answered = self.rejected = self.repeated = 0
        self.last_sec = time.monotonic()
        """When the last new answer came."""
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            with self._predictions as predictions:
                while self.answered + self.rejected < self._expected and not self._ended.is_set():
                    for answer in predictions.read(0.1):
                        self._take(answer.prediction.request_id, answer.prediction.rejected is None,
                                   answer.read_ms - answer.requested_ms)  # fmt: skip
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits
            self.failure = error

    def _take(self, request_id: str, answered: bool, latency_ms: int) -> None:
        row = self._rows.get(request_id)
        if row is None:
            return
        if not np.isnan(self.latency_ms[row]):
            self.repeated += 1
            return
        self.latency_ms[row] = latency_ms
        self.last_sec = time.monotonic()
        if answered:
            self.answered += 1
        else:
            self.rejected += 1

    def finish(self, expected: int, timeout_sec: float) -> None:
        """Wait until `expected` requests have their answers, as long as these keep coming within `timeout_sec` of each other."""
        self._expected = expected
        asked_sec = time.monotonic()
        while self.is_alive() and time.monotonic() - max(self.last_sec, asked_sec) < timeout_sec:
            self.join(0.1)
        self._ended.set()
        self.join()
        if self.failure is not None:
            raise self.failure


def replay(
    scenario: Scenario,
    client: Client,
    *,
    rate_rows_per_sec: float | None,
    run: str = "",
    rows: int | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: threading.Event | None = None,
    settle_sec: float = 30.0,
) -> Report:
    """Replay what follows the scenario's first rows: all of it, or `rows` of it.

    `rate_rows_per_sec`: None is as fast as the broker takes them. `run` begins every request id (which ends with the row's number): give each
    replay of one deployment its own. `on_progress` is called in this thread every half second or so. `stop` ends the sending
    early. `settle_sec`: how long to wait without any answer before the rest counts as missing.
    """
    last = len(scenario) if rows is None else min(scenario.first + rows, len(scenario))
    records = _Records(scenario, run, scenario.first, last)
    listener = _Listener(client.predictions(scenario.name), records.ids)
    listener.start()
    delay, total = scenario.label_delay_rows, len(records.ids)
    steps = total + delay if total else 0
    started_sec = shown_sec = time.monotonic()
    step = 0
    while step < steps and not (stop is not None and stop.is_set()):
        elapsed_sec = time.monotonic() - started_sec
        due = steps if rate_rows_per_sec is None else min(int(elapsed_sec * rate_rows_per_sec) + 1, steps)
        if step >= due:
            time.sleep(TICK_SEC)
        for each in range(step, min(due, step + CHUNK_ROWS)):
            if each < total:
                client.produce(scenario.name, records.requests[each], key=records.keys[each])
            labelled = each - delay
            if labelled >= 0:
                client.feedback(
                    scenario.name,
                    request_id=records.ids[labelled],
                    label=records.labels[labelled],
                    key=records.keys[labelled],
                )
            step = each + 1
        if time.monotonic() - shown_sec >= 0.5:
            shown_sec = time.monotonic()
            on_progress(_progress(listener, step, delay, total, shown_sec - started_sec))
    client.flush()
    sent_sec = time.monotonic() - started_sec
    listener.finish(min(step, total), settle_sec)
    on_progress(_progress(listener, step, delay, total, time.monotonic() - started_sec))
    return Report(
        requests=min(step, total),
        labels=max(step - delay, 0),
        answered=listener.answered,
        rejected=listener.rejected,
        repeated=listener.repeated,
        sent_sec=sent_sec,
        answered_sec=listener.last_sec - started_sec,
        latency_ms=listener.latency_ms,
    )


def _progress(listener: _Listener, step: int, delay: int, total: int, elapsed_sec: float) -> Progress:
    return Progress(
        sent=min(step, total),
        labels=max(step - delay, 0),
        answered=listener.answered,
        rejected=listener.rejected,
        rows=total,
        elapsed_sec=elapsed_sec,
    )
