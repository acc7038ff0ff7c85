"""The sink on a real broker and the real ClickHouse engine, with a fault proxy between it and ClickHouse."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from compose.embedded.kafka import Kafka, KafkaProbe
from compose.embedded.ports import free_ports
from compose.embedded.process import NotReady
from compose.setup import set_up
from runtime.settings import Settings
from tests.compose.clickhouse_server import PASSWORD, ServerProcess, start, stop
from tests.streams.sink.proxy import Proxy
from tests.streams.sink.world import MODEL, SPEC, World, wait_for


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, ServerProcess, Path]]:
    folder = tmp_path_factory.mktemp("sink")
    models_dir = folder / "models"
    (models_dir / MODEL).mkdir(parents=True)
    (models_dir / MODEL / "model.toml").write_text(SPEC)
    port, controller_port = free_ports(2)
    starting = Kafka("127.0.0.1", port, controller_port, folder / "kafka").start()
    with (folder / "kafka.log").open("wb") as log:
        broker = subprocess.Popen(
            starting.argv, env={**os.environ, **starting.environment}, stdout=log, stderr=log
        )
    try:
        (folder / "clickhouse").mkdir()
        engine = start(folder / "clickhouse")
        try:
            probe = KafkaProbe(f"127.0.0.1:{port}")
            wait_for(lambda: _answers(probe), "the broker answers")
            settings = Settings(
                kafka_bootstrap=f"127.0.0.1:{port}",
                clickhouse_url=f"http://127.0.0.1:{engine.port}",
                clickhouse_user="tidemill",
                clickhouse_password=PASSWORD,
                models_dir=models_dir,
            )
            set_up(settings)
            yield settings, engine, folder
        finally:
            stop(engine)
    finally:
        broker.kill()
        broker.wait()


def _answers(probe: KafkaProbe) -> bool:
    try:
        probe()
    except NotReady:
        return False
    return True


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
