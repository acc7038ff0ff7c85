"""The control room on a real broker: one decides, a crash decides nothing, and what is decided again is the same decision."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition

from compose.embedded.stack import Stack
from control.service import ControlRoom
from runtime.kafka import consumer, producer
from runtime.service import FENCED, Health
from runtime.settings import Settings
from schemas.artifact import parse_version
from schemas.events import Arm, Command, Retrain, Rollout, RouteTable
from schemas.topics import COMMANDS, RETRAINS, ROLLOUTS, ROUTES

MODEL = "reviews"
WITHIN_SEC = 30.0
Action = Literal["freeze", "unfreeze", "retrain"]


@pytest.fixture(scope="module")
def settings(infrastructure: Stack) -> Settings:
    return infrastructure.settings


@pytest.fixture
def champion(settings: Settings) -> Iterator[RouteTable]:
    """The model's route: version 1.0 answers. Afterwards it has none."""
    artifact = f"1.0-{'0' * 12}"
    arm = Arm(name="champion", role="live", version="1.0", artifact=artifact)
    revision = time.time_ns()
    yield put(settings, RouteTable(
        event_id="r", model=MODEL, at_ms=0, revision=revision, stage="steady", arms=[arm], champion="1.0", major="1.0",
    ))  # fmt: skip
    put(
        settings,
        RouteTable(event_id="r", model=MODEL, at_ms=0, revision=time.time_ns(), stage="empty", arms=[]),
    )


def put(settings: Settings, route: RouteTable) -> RouteTable:
    write(settings, ROUTES.name, route)
    return route


def order(settings: Settings, action: Action) -> str:
    """A person's command; its id."""
    command = Command(event_id=str(uuid.uuid4()), model=MODEL, at_ms=0, action=action, by="test")
    write(settings, COMMANDS.name, command)
    return command.event_id


def write(settings: Settings, topic: str, event: msgspec.Struct) -> None:
    client = producer(settings)
    client.produce(topic, msgspec.json.encode(event), MODEL.encode())
    assert client.flush(10) == 0


class Written:
    """What the control room writes from now on."""

    def __init__(self, settings: Settings, isolation: str = "read_committed") -> None:
        self._client: Consumer = consumer(settings, f"test-{uuid.uuid4()}", **{"isolation.level": isolation})
        places = [TopicPartition(topic.name, 0) for topic in (ROLLOUTS, ROUTES, RETRAINS)]
        for place in places:
            # The end of the log, which for a reader of committed records is behind an open transaction too.
            _, place.offset = self._client.get_watermark_offsets(place, timeout=10)
        self._client.assign(places)
        self.rollouts: list[Rollout] = []
        self.routes: list[RouteTable] = []
        self.retrains: list[Retrain] = []

    def read(self) -> None:
        kinds: dict[str, tuple[Any, Any]] = {
            ROLLOUTS.name: (Rollout, self.rollouts),
            ROUTES.name: (RouteTable, self.routes),
            RETRAINS.name: (Retrain, self.retrains),
        }
        for message in self._client.consume(100, 0.1):
            assert message.error() is None, message.error()
            kind, found = kinds[message.topic() or ""]
            event = msgspec.json.decode(message.value() or b"", type=kind)
            if event.model == MODEL:
                found.append(event)

    def until(self, what: str, count: int) -> None:
        """Wait for `count` events of a kind."""
        deadline = time.monotonic() + WITHIN_SEC
        while len(getattr(self, what)) < count:
            assert time.monotonic() < deadline, f"not within {WITHIN_SEC:.0f} s: {count} {what}"
            self.read()

    def close(self) -> None:
        self._client.close()


@contextlib.contextmanager
def written(settings: Settings, isolation: str = "read_committed") -> Iterator[Written]:
    found = Written(settings, isolation)
    try:
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def control(settings: Settings, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m control`."""
    with (folder / f"control-{uuid.uuid4()}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "control"], env={**os.environ, **settings.environment()}, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def crashed_while_deciding(settings: Settings, commands: int) -> None:
    """A control room that takes `commands`, writes what it decides and dies before it commits: its transaction stays open."""
    room = ControlRoom(settings, Health("control"))
    taken = 0
    deadline = time.monotonic() + WITHIN_SEC
    while taken < commands:
        assert time.monotonic() < deadline, "no command came"
        for message in room._consumer.consume(10, 0.1):
            assert message.error() is None, message.error()
            if message.topic() == COMMANDS.name:
                taken += 1
            room._take(message)
    assert room._decided
    assert room._producer._producer.flush(10) == 0
    # A dead process sends no leave and no abort; a client that is closed does: so it is only let go of.
    room._consumer.close()
    room._triton.close()


def test_a_second_control_room_fences_the_first_and_revisions_only_grow(
    settings: Settings, champion: RouteTable, tmp_path: Path
) -> None:
    with written(settings) as seen, control(settings, tmp_path) as first:
        order(settings, "freeze")
        seen.until("routes", 1)
        with control(settings, tmp_path) as second:
            assert first.wait(WITHIN_SEC) == FENCED
            order(settings, "unfreeze")
            seen.until("routes", 2)
            assert second.poll() is None
            second.send_signal(signal.SIGTERM)
            assert second.wait(WITHIN_SEC) == 0
    assert [route.revision for route in seen.routes] == [champion.revision + 1, champion.revision + 2]
    assert [route.frozen for route in seen.routes] == [True, False]
    assert [rollout.action for rollout in seen.rollouts] == ["freeze", "unfreeze"]


def test_a_control_room_killed_before_its_commit_decided_nothing_and_its_successor_decides_the_same(
    settings: Settings, champion: RouteTable, tmp_path: Path
) -> None:
    with written(settings) as seen, written(settings, "read_uncommitted") as tried:
        order(settings, "freeze")
        crashed_while_deciding(settings, commands=1)
        tried.until("rollouts", 1)
        seen.read()
        assert (seen.rollouts, seen.routes) == ([], [])
        with control(settings, tmp_path):
            seen.until("routes", 1)
            seen.until("rollouts", 1)
            tried.until("rollouts", 2)
        (route,) = seen.routes
        (rollout,) = seen.rollouts
        assert (route.revision, route.frozen, rollout.revision) == (
            champion.revision + 1,
            True,
            champion.revision + 1,
        )
        assert [one.event_id for one in tried.rollouts] == [rollout.event_id] * 2


def test_an_order_that_a_crash_swallowed_goes_out_once_with_the_same_id(
    settings: Settings, champion: RouteTable, tmp_path: Path
) -> None:
    with written(settings) as seen, written(settings, "read_uncommitted") as tried:
        command = order(settings, "retrain")
        crashed_while_deciding(settings, commands=1)
        with control(settings, tmp_path):
            seen.until("retrains", 1)
            # While it is open a second order of the kind is ignored, though a person gives it.
            order(settings, "retrain")
            order(settings, "freeze")
            seen.until("rollouts", 1)
        tried.read()
        (retrain,) = seen.retrains
        assert retrain.evidence["command"] == command
        assert retrain.dedupe_key == f"{MODEL}/command/{command}"
        assert [one.event_id for one in tried.retrains] == [retrain.event_id] * 2


def test_files_get_numbers_of_their_own_and_orders_that_name_their_commands(
    settings: Settings, champion: RouteTable, tmp_path: Path
) -> None:
    files = [
        Command(
            event_id=str(uuid.uuid4()), model=MODEL, at_ms=0, action="train", by="test", snapshot=digit * 64, rows=9, seed=3
        )
        for digit in "01"
    ]  # fmt: skip
    with written(settings) as seen, control(settings, tmp_path):
        for file in files:
            write(settings, COMMANDS.name, file)
        seen.until("retrains", 2)
    for file, order_ in zip(files, seen.retrains, strict=True):
        assert (order_.kind, order_.seed, order_.evidence["command"]) == ("initial", 3, file.event_id)
        assert order_.evidence["snapshot"] == file.snapshot
        assert (order_.base_version, order_.base_artifact) == (champion.champion, champion.arms[0].artifact)
    first, second = (parse_version(each.new_version)[0] for each in seen.retrains)
    assert second == first + 1
