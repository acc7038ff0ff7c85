"""The replay as an ordinary producer, against somebody who answers like the gateway."""

from __future__ import annotations

import threading
import time
import uuid

import msgspec
import pytest

from runtime.settings import Settings
from scenarios.replay import Progress, replay
from scenarios.scenario import Scenario
from tests.client.conftest import MODEL, Answerer
from tests.reader import written
from tidemill import Client

pytestmark = pytest.mark.stack
DELAY_ROWS = 7


def scenario(rows: int) -> Scenario:
    return Scenario(
        name=MODEL,
        columns={"x": [row / rows for row in range(rows)]},
        labels=["red" if row % 2 else "blue" for row in range(rows)],
        entities=["one"] * rows,
        parts=[""] * rows,
        first=10,
        label_delay_rows=DELAY_ROWS,
    )


def test_every_row_after_the_first_is_sent_answered_and_labelled(
    settings: Settings, answerer: Answerer
) -> None:
    seen: list[Progress] = []
    run = uuid.uuid4().hex
    with Client(settings) as client:
        report = replay(scenario(110), client, rate_rows_per_sec=None, run=run, on_progress=seen.append)
    assert (report.requests, report.labels, report.answered, report.rejected) == (100, 100, 100, 0)
    assert (report.missing, report.repeated) == (0, 0)
    assert 0 <= report.latency_percentile_ms(50) <= report.latency_percentile_ms(99) < 30_000
    assert (seen[-1].sent, seen[-1].labels, seen[-1].rows) == (100, 100, 100)
    labels = [
        record
        for message in written(settings, f"feedback.{MODEL}")
        if (record := msgspec.json.decode(message.value() or b""))["request_id"].startswith(run)
    ]
    assert [record["request_id"] for record in labels] == [f"{run}{row}" for row in range(10, 110)]
    assert [record["value"] for record in labels] == ["blue", "red"] * 50


@pytest.mark.parametrize("rate", [None, 200.0])
def test_a_label_is_sent_after_the_request_that_stands_its_delay_later(
    settings: Settings, answerer: Answerer, rate: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    with Client(settings) as client:
        produce, feedback = client.produce, client.feedback

        def watched_produce(model: str, value: bytes, *, key: bytes) -> object:
            sent.append("request")
            return produce(model, value, key=key)

        def watched_feedback(model: str, **said: object) -> None:
            sent.append("label")
            feedback(model, **said)  # type: ignore[arg-type]

        monkeypatch.setattr(client, "produce", watched_produce)
        monkeypatch.setattr(client, "feedback", watched_feedback)
        replay(scenario(40), client, rate_rows_per_sec=rate, run=uuid.uuid4().hex)
    assert sent == ["request"] * (DELAY_ROWS + 1) + ["label", "request"] * 22 + ["label"] * 8


def test_the_rate_is_kept(settings: Settings, answerer: Answerer) -> None:
    with Client(settings) as client:
        report = replay(scenario(110), client, rate_rows_per_sec=100.0, run=uuid.uuid4().hex)
    assert report.sent_sec >= (100 + DELAY_ROWS - 1) / 100


def test_a_replay_that_is_stopped_reports_what_it_sent(settings: Settings, answerer: Answerer) -> None:
    stop = threading.Event()

    def stop_soon(progress: Progress) -> None:
        stop.set()

    with Client(settings) as client:
        report = replay(
            scenario(10_000), client, rate_rows_per_sec=100.0, run=uuid.uuid4().hex,
            on_progress=stop_soon, stop=stop,
        )  # fmt: skip
    assert 0 < report.requests < 9_000
    assert report.answered == report.requests


def test_what_nobody_answers_is_missing(settings: Settings) -> None:
    started = time.monotonic()
    with Client(settings) as client:
        report = replay(scenario(20), client, rate_rows_per_sec=None, run="", settle_sec=0.5)
    assert report.requests == report.answered + report.rejected + report.missing
    assert time.monotonic() - started < 60
