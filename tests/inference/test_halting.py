"""A partition that would dead-letter too much halts; the others go on, and it goes on by itself once the cause is mended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compose.embedded.stack import Stack
from runtime.settings import Settings
from schemas.events import Alert
from schemas.topics import ALERTS
from tests.inference.serving import (
    Gateway,
    arm,
    committed,
    gateway,
    readers,
    request,
    route,
    send,
    version,
)
from tests.reader import Reader
from tests.waiting import until

LIMIT = 500
POISON = {"value": request(period=7), "partition": 0}
GOOD = {"value": request(), "partition": 0}


@pytest.fixture(scope="module")
def settings(infrastructure: Stack) -> Settings:
    return infrastructure.settings


@pytest.fixture
def champion(settings: Settings) -> Iterator[str]:
    artifact = version(settings, "1.0")
    yield artifact
    route(settings, arm(artifact))


def stage(process: Gateway, partition: int = 0) -> dict[str, Any]:
    return process.stage(f"requests.electricity:{partition}")


def is_halted(process: Gateway) -> bool:
    return stage(process).get("state") == "halted"


def has_no_lag(process: Gateway) -> bool:
    return bool(stage(process)) and stage(process)["lag_records"] == 0


def test_poison_without_end_halts_its_partition_until_a_person_lets_it_pass(
    settings: Settings, champion: str, tmp_path: Path
) -> None:
    route(settings, arm(champion))
    alerts = Reader(settings, ALERTS.name)
    with readers(settings) as written:
        send(settings, [GOOD])
        send(settings, [POISON] * 300)
        with gateway(settings, tmp_path) as process:
            process.wait_ready()
            written.predictions.until(301)
            assert not is_halted(process)
            places = send(settings, [POISON] * 900 + [GOOD])
            until(lambda: is_halted(process), "halted")
            assert (
                "rows in a row cannot be served (halt_after_consecutive = 500): out_of_range"
                in stage(process)["note"]
            )
            assert stage(process)["lag_records"] > 0
            assert 'tidemill_halted_partitions{stage="gateway"} 1.0' in process.metrics()
            send(settings, [{"value": request(), "partition": 1} for _ in range(20)])
            until(
                lambda: sum(m.partition() == 1 for m in written.predictions.read()) == 20,
                "the other partition",
            )
            (alert,) = [msgspec.json.decode(m.value() or b"", type=Alert) for m in alerts.until(1)]
            assert (alert.kind, alert.severity, alert.subject) == (
                "partition_halted",
                "severe",
                "requests.electricity:0",
            )
        dead = len(written.dead_letters.read())
        assert dead < LIMIT
        halted_at = committed(settings)[0]
        with gateway(settings, tmp_path) as process:
            process.wait_ready()
            until(lambda: is_halted(process), "halted again")
            assert committed(settings)[0] == halted_at
            assert len(written.dead_letters.read()) == dead
            route(settings, arm(champion), pass_until_ms=int(time.time() * 1000))
            until(lambda: has_no_lag(process), "everything passed")
            assert not is_halted(process)
        assert len(written.dead_letters.until(1200)) == 1200
        written.predictions.until(301 + 901 + 20)
        repeated = {msgspec.json.decode(m.value() or b"", type=Alert).event_id for m in alerts.read()}
        assert repeated == {alert.event_id}
        assert committed(settings)[0][0] == places[-1].offset + 1
    alerts.close()


def test_a_fault_of_ours_ends_the_halt_when_it_is_mended(
    settings: Settings, champion: str, tmp_path: Path
) -> None:
    """No version is ready: everything would be rejected, though nothing is wrong with the requests."""
    revision = route(settings)
    with readers(settings) as written, gateway(settings, tmp_path) as process:
        process.wait_ready()
        process.wait_route(revision)
        send(settings, [GOOD] * 1500)
        until(lambda: is_halted(process), "halted")
        route(settings, arm(champion))
        rejected = sum("rejected" in answer for answer in written.answers(1500))
        assert rejected < LIMIT  # all of them before it halted
        written.dead_letters.until(rejected)
        until(lambda: stage(process)["state"] == "running", "running")


@pytest.fixture(scope="module")
def running(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway that the tests below share."""
    with gateway(settings, tmp_path_factory.mktemp("gateway")) as process:
        process.wait_ready()
        yield process


def test_too_large_a_share_halts_too(settings: Settings, champion: str, running: Gateway) -> None:
    running.wait_route(route(settings, arm(champion)))
    with readers(settings) as written:
        send(settings, [POISON, GOOD, POISON] * 1500)
        until(lambda: is_halted(running), "halted")
        assert "halt_ratio = 0.5" in stage(running)["note"]
        assert len(written.dead_letters.read()) < 2000
        route(settings, arm(champion), pass_until_ms=int(time.time() * 1000))
        assert sum("rejected" in answer for answer in written.answers(4500)) == 3000


def test_poison_at_a_low_rate_is_below_the_limit(settings: Settings, champion: str, running: Gateway) -> None:
    running.wait_route(route(settings, arm(champion)))
    with readers(settings) as written:
        send(settings, [POISON if i % 20 == 0 else GOOD for i in range(6000)])
        assert len(written.answers(6000)) == 6000
        assert len(written.dead_letters.until(300)) == 300
