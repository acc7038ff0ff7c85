"""Requests that Kafka dropped before a gateway read them: nobody answers them, and somebody says so."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from compose.embedded.stack import Stack
from runtime.settings import Settings
from schemas.events import Alert
from schemas.topics import ALERTS
from tests.inference.serving import (
    REQUESTS_TOPIC,
    arm,
    committed,
    gateway,
    readers,
    request,
    route,
    send,
    topic_id,
    version,
)
from tests.reader import Reader
from tests.retention import drop_before


@pytest.fixture(scope="module")
def settings(infrastructure: Stack) -> Settings:
    return infrastructure.settings


def test_what_kafka_dropped_is_alarmed_about_once_and_what_follows_is_answered(
    settings: Settings, tmp_path: Path
) -> None:
    route(settings, arm(version(settings, "1.0")))
    good = {"value": request(), "partition": 1}
    alerts = Reader(settings, ALERTS.name)
    with readers(settings) as written:
        send(settings, [good])
        with gateway(settings, tmp_path) as process:
            process.wait_ready()
            written.predictions.until(1)
        reached = committed(settings)[1][0]
        last = send(settings, [good] * 5)[-1].offset
        drop_before(settings, (REQUESTS_TOPIC, 1), last)
        for _ in range(2):
            with gateway(settings, tmp_path) as process:
                process.wait_ready()
                written.predictions.until(2)
                assert committed(settings)[1][0] > last
        (alert,) = [msgspec.json.decode(m.value() or b"", type=Alert) for m in alerts.until(1)]
        assert (alert.kind, alert.subject) == ("records_missing", f"{REQUESTS_TOPIC}:1")
        assert alert.evidence == {
            "stage": "gateway",
            "topic_id": str(topic_id(settings)),
            "first_offset": reached,
            "end_offset": last,
            "cause": "retention",
        }
    alerts.close()
