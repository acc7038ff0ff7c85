"""The control room on a real broker: one decides, a crash decides nothing, and what is decided again is the same decision."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import pytest
from confluent_kafka import Message

from compose.embedded.stack import Stack
from control.service import ControlRoom, decoded, main
from runtime.headers import pairs, text
from runtime.kafka import producer
from runtime.service import FENCED, Health, Stop
from runtime.settings import Settings
from runtime.stalls import Positions, Stalled, StallGuard
from schemas import dead_letters
from schemas.artifact import parse_version
from schemas.errors import Rejection
from schemas.events import Arm, Command, Event, Retrain, Rollout, RouteTable
from schemas.topics import (
    ALERTS,
    CANDIDATES,
    COMMANDS,
    DEAD_LETTERS,
    OUTCOMES,
    RETRAINS,
    ROLLOUTS,
    ROUTES,
    Topic,
)
from tests.reader import Reader
from tests.services import Service, service

MODEL = "reviews"
WITHIN_SEC = 30.0
Action = Literal["freeze", "unfreeze", "retrain"]
E = TypeVar("E", bound=Event)


@pytest.fixture(scope="module")
def settings(infrastructure: Stack) -> Settings:
    return infrastructure.settings


def test_a_room_whose_consumer_stands_still_is_followed_by_another(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, stop = StallGuard.reading, Stop()
    members: list[StallGuard] = []

    def stalled_once(self: StallGuard, positions: Positions, *, joined: bool) -> None:
        if joined and self not in members:
            members.append(self)
            if len(members) == 1:
                raise Stalled("it stands")
            stop.set()
        reading(self, positions, joined=joined)

    monkeypatch.setattr(StallGuard, "reading", stalled_once)
    room = threading.Thread(target=main, args=(settings, Health("control"), stop))
    room.start()
    room.join(WITHIN_SEC)
    stop.set()
    assert len(members) == 2


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
    """What the control room writes about the model from now on."""

    def __init__(self, settings: Settings, spying: bool = False) -> None:
        self._readers: dict[type[Event], Reader] = {
            kind: Reader(settings, topic.name, spying=spying)
            for kind, topic in ((Rollout, ROLLOUTS), (RouteTable, ROUTES), (Retrain, RETRAINS))
        }

    @property
    def rollouts(self) -> list[Rollout]:
        return self._so_far(Rollout)

    @property
    def routes(self) -> list[RouteTable]:
        return self._so_far(RouteTable)

    @property
    def retrains(self) -> list[Retrain]:
        return self._so_far(Retrain)

    def read(self) -> None:
        """All that is there."""
        for reader in self._readers.values():
            reader.read()

    def until(self, kind: type[Event], count: int) -> None:
        """Wait for `count` events of a kind."""
        self._readers[kind].wait(lambda _: len(self._so_far(kind)) >= count, f"{count} events")

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    def _so_far(self, kind: type[E]) -> list[E]:
        events = [
            msgspec.json.decode(message.value() or b"", type=kind) for message in self._readers[kind].messages
        ]
        return [event for event in events if event.model == MODEL]


@contextlib.contextmanager
def written(settings: Settings, spying: bool = False) -> Iterator[Written]:
    found = Written(settings, spying)
    try:
        yield found
    finally:
        found.close()


def control(settings: Settings, folder: Path) -> AbstractContextManager[Service]:
    """`python -m control`."""
    return service(settings, folder / f"control-{uuid.uuid4()}.log", "control")


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
        seen.until(RouteTable, 1)
        with control(settings, tmp_path) as second:
            assert first.process.wait(WITHIN_SEC) == FENCED
            order(settings, "unfreeze")
            seen.until(RouteTable, 2)
            assert second.exit_code is None
            assert second.stop() == 0
        seen.read()
    assert [route.revision for route in seen.routes] == [champion.revision + 1, champion.revision + 2]
    assert [route.frozen for route in seen.routes] == [True, False]
    assert [rollout.action for rollout in seen.rollouts] == ["freeze", "unfreeze"]


def test_a_control_room_killed_before_its_commit_decided_nothing_and_its_successor_decides_the_same(
    settings: Settings, champion: RouteTable, tmp_path: Path
) -> None:
    with written(settings) as seen, written(settings, spying=True) as tried:
        order(settings, "freeze")
        crashed_while_deciding(settings, commands=1)
        tried.until(Rollout, 1)
        seen.read()
        assert (seen.rollouts, seen.routes) == ([], [])
        with control(settings, tmp_path):
            seen.until(RouteTable, 1)
            seen.until(Rollout, 1)
            tried.until(Rollout, 2)
        for each in (seen, tried):
            each.read()
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
    with written(settings) as seen, written(settings, spying=True) as tried:
        command = order(settings, "retrain")
        crashed_while_deciding(settings, commands=1)
        with control(settings, tmp_path):
            seen.until(Retrain, 1)
            # While it is open a second order of the kind is ignored, though a person gives it.
            order(settings, "retrain")
            order(settings, "freeze")
            seen.until(Rollout, 1)
        for each in (seen, tried):
            each.read()
        (retrain,) = seen.retrains
        assert retrain.evidence["command"] == command
        assert retrain.dedupe_key == f"{MODEL}/command/{command}"
        assert [one.event_id for one in tried.retrains] == [retrain.event_id] * 2


def test_what_is_no_event_becomes_a_dead_letter_and_the_next_is_decided(
    settings: Settings, champion: RouteTable, tmp_path: Path
) -> None:
    broken = f"{{broken {uuid.uuid4()}".encode()
    places = (ALERTS, CANDIDATES, COMMANDS)
    letters = Reader(settings, DEAD_LETTERS.name)
    client = producer(settings)
    for topic in places:
        client.produce(topic.name, broken, MODEL.encode())
    assert client.flush(10) == 0
    with written(settings) as seen, control(settings, tmp_path):
        order(settings, "freeze")
        seen.until(RouteTable, 1)
        letters.wait(
            lambda found: sum(each.value() == broken for each in found) >= len(places), "dead letters"
        )
    headers = [pairs(each.headers()) for each in letters.read() if each.value() == broken]
    letters.close()
    assert sorted(text(found, dead_letters.TOPIC) for found in headers) == sorted(
        each.name for each in places
    )
    assert {text(found, dead_letters.STAGE) for found in headers} == {"control"}


@pytest.mark.parametrize("topic", [ALERTS, CANDIDATES, COMMANDS, OUTCOMES], ids=lambda topic: topic.name)
@pytest.mark.parametrize("value", [None, b"", b"{}", b"[1]", b"\xff" * 64])
def test_whatever_is_no_event_is_rejected(topic: Topic, value: bytes | None) -> None:
    with pytest.raises(Rejection, match="expected"):
        decoded(Message(topic=topic.name, partition=0, offset=0, value=value))


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
        seen.until(Retrain, 2)
    for file, order_ in zip(files, seen.retrains, strict=True):
        assert (order_.kind, order_.seed, order_.evidence["command"]) == ("initial", 3, file.event_id)
        assert order_.evidence["snapshot"] == file.snapshot
        assert (order_.base_version, order_.base_artifact) == (champion.champion, champion.arms[0].artifact)
    first, second = (parse_version(each.new_version)[0] for each in seen.retrains)
    assert second == first + 1
