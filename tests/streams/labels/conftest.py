"""The labels stage on a real broker and the real ClickHouse engine."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import msgspec
import pytest

from compose.embedded.kafka import Kafka, KafkaProbe
from compose.embedded.ports import free_ports
from compose.embedded.process import NotReady
from compose.setup import set_up
from runtime.settings import Settings
from tests.compose.clickhouse_server import PASSWORD, start, stop
from tests.streams.labels.loop import MODEL, SPEC, WAIT_SEC, Loop, Service


@pytest.fixture(scope="package")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A broker and an engine with all topics and tables of one small model."""
    folder = tmp_path_factory.mktemp("labels")
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
            _wait_for_broker(f"127.0.0.1:{port}")
            settings = Settings(
                kafka_bootstrap=f"127.0.0.1:{port}",
                clickhouse_url=f"http://127.0.0.1:{engine.port}",
                clickhouse_user="tidemill",
                clickhouse_password=PASSWORD,
                models_dir=models_dir,
            )
            set_up(settings)
            yield settings
        finally:
            stop(engine)
    finally:
        broker.kill()
        broker.wait()


def _wait_for_broker(bootstrap: str) -> None:
    probe, deadline = KafkaProbe(bootstrap), time.monotonic() + WAIT_SEC
    while True:
        try:
            probe()
            return
        except NotReady:
            assert time.monotonic() < deadline, "the broker did not start"
            time.sleep(0.1)


@pytest.fixture(scope="package")
def loop(settings: Settings) -> Loop:
    return Loop(settings)


@pytest.fixture(scope="package")
def service(settings: Settings, loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The stage as a process with slot 0."""
    log = tmp_path_factory.mktemp("service") / "labels.log"
    running = Service(msgspec.structs.replace(settings, slot=0), log)
    yield running
    assert running.end() == 0, log.read_text()
    assert '"level": "error"' not in log.read_text()
