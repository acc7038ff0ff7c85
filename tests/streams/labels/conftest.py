"""The labels stage on a real broker and the real ClickHouse engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runtime.settings import Settings
from tests.compose.clickhouse_server import ServerProcess
from tests.services import Service
from tests.streams.deployment import deployed
from tests.streams.labels.loop import MODEL, SPEC, Loop


@pytest.fixture(scope="package")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, ServerProcess]]:
    """A broker and an engine with all topics and tables of one small model."""
    with deployed(tmp_path_factory.mktemp("labels"), MODEL, SPEC) as found:
        yield found


@pytest.fixture(scope="package")
def settings(deployment: tuple[Settings, ServerProcess]) -> Settings:
    return deployment[0]


@pytest.fixture(scope="package")
def engine(deployment: tuple[Settings, ServerProcess]) -> ServerProcess:
    return deployment[1]


@pytest.fixture(scope="package")
def loop(settings: Settings) -> Loop:
    return Loop(settings)


@pytest.fixture(scope="package")
def service(settings: Settings, loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The stage as a process with slot 0."""
    running = Service(settings, tmp_path_factory.mktemp("service") / "labels.log", "streams", "labels")
    running.start()
    yield running
    assert running.stop() == 0, running.log.read_text()
    assert '"level": "error"' not in running.log.read_text()
