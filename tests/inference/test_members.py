"""Gateways that come and go under load: nothing is answered twice or never, and each partition keeps its order."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from compose.embedded.stack import Stack
from runtime.settings import Settings
from schemas.identity import prediction_id
from tests.inference.serving import (
    MODEL,
    Gateway,
    Sent,
    arm,
    gateway,
    readers,
    request,
    route,
    send,
    topic_id,
    version,
)
from tests.waiting import until

BLOCK = 200
FIRST_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def settings(infrastructure: Stack, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A deployment of one model: of several, a gateway that joins is given whole models, as librdkafka's sticky assignor balances."""
    models_dir = tmp_path_factory.mktemp("models")
    (models_dir / MODEL).symlink_to(infrastructure.settings.models_dir / MODEL)
    return msgspec.structs.replace(infrastructure.settings, models_dir=models_dir)


class Load:
    """Requests without a pause, from a thread; what was sent lies in `sent`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent: list[Sent] = []

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            first = len(self.sent)
            numbers = range(first, first + BLOCK)
            records = [
                {"value": request(), "key": b"%d" % (n % 97), "timestamp": FIRST_MS + n} for n in numbers
            ]
            self.sent += send(self._settings, records)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def goes_on(self) -> None:
        """Return when more was sent than at the call."""
        before = len(self.sent)
        until(lambda: len(self.sent) > before, "more load")


def has_partitions(member: Gateway) -> bool:
    return any(name.startswith(f"requests.{MODEL}:") for name in member.stages())


def test_members_that_come_and_go_under_load_answer_each_request_once_and_in_order(
    settings: Settings, tmp_path: Path
) -> None:
    revision = route(settings, arm(version(settings, "1.0")))
    load = Load(settings)
    with readers(settings) as written, contextlib.ExitStack() as members:
        first = members.enter_context(gateway(settings, tmp_path, slot=0))
        first.wait_ready()
        first.wait_route(revision)
        with load.running():
            second = members.enter_context(gateway(settings, tmp_path, slot=1))
            until(lambda: has_partitions(second) and has_partitions(first), "both have partitions")
            load.goes_on()
            # One dies without a word, one comes, one leaves in order: each moves partitions that are at work.
            second.kill()
            third = members.enter_context(gateway(settings, tmp_path, slot=2))
            until(lambda: has_partitions(third), "the third has partitions")
            load.goes_on()
            assert first.stop() == 0
            again = members.enter_context(gateway(settings, tmp_path, slot=1))
            until(lambda: has_partitions(again), "the second is back")
            load.goes_on()
        messages = written.predictions.until(len(load.sent))
        rows = written.observations(len(load.sent))
    topic = topic_id(settings)
    expected: dict[int, list[str]] = {}
    for number, place in sorted(enumerate(load.sent), key=lambda each: (each[1].partition, each[1].offset)):
        identity = prediction_id(FIRST_MS + number, topic, place.partition, place.offset)
        expected.setdefault(place.partition, []).append(str(identity))
    found: dict[int, list[str]] = {}
    for message in messages:
        found.setdefault(message.partition() or 0, []).append((message.value() or b"")[18:54].decode())
    assert found == expected
    assert sorted(str(uuid.UUID(bytes=row["prediction_id"])) for row in rows) == sorted(
        identity for ids in expected.values() for identity in ids
    )
