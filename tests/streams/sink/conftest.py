"""The sink on a real broker and the real ClickHouse engine, with a fault proxy between it and ClickHouse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.settings import Settings
from tests.compose.clickhouse_server import ServerProcess
from tests.streams.deployment import deployed
from tests.streams.sink.proxy import Proxy
from tests.streams.sink.world import MODEL, SPEC, World


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, ServerProcess, Path]]:
    folder = tmp_path_factory.mktemp("sink")
    with deployed(folder, MODEL, SPEC) as (settings, engine):
        yield settings, engine, folder


@pytest.fixture
def world(servers: tuple[Settings, ServerProcess, Path], tmp_path: Path) -> Iterator[World]:
    settings, engine, folder = servers
    proxy = Proxy(engine.port)
    client = engine.client(writer=True)
    made = World(settings, engine, client, proxy, tmp_path, folder / "clickhouse")
    try:
        yield made
    finally:
        made.end()
        proxy.close()
        client.close()
