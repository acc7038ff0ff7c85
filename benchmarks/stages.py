"""A stack without services, and single services beside it that a benchmark starts, watches and ends one by one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from clickhouse_connect.driver.client import Client
from confluent_kafka import TopicPartition
from confluent_kafka.cimpl import NewTopic

from benchmarks.load import Backlog
from benchmarks.meter import StageFailed
from benchmarks.subject import write_models
from compose.embedded.parts import ROOT
from compose.embedded.ports import HOST, free_ports
from compose.embedded.process import dying_with_parent, kill_group, last_error
from compose.embedded.stack import SERVICES, Stack
from runtime.kafka import admin, consumer
from runtime.settings import Settings
from warehouse.client import connect

GRACE_SEC: Final = 20.0


@dataclass
class Bench:
    """The infrastructure of one benchmark, in a folder that goes when it ends."""

    folder: Path
    settings: Settings
    stack: Stack

    def pids(self) -> dict[str, int]:
        """Of broker, ClickHouse and Triton."""
        return {name: row["pid"] for name, row in self.stack.status().items() if row["pid"] is not None}

    @contextlib.contextmanager
    def clickhouse(self) -> Iterator[Client]:
        """A client that may write."""
        found = self.settings
        client = connect(found.clickhouse_url, found.clickhouse_user, found.clickhouse_password)
        try:
            yield client
        finally:
            client.close()

    def create_topics(self, names: Sequence[str], partitions: int = 2) -> None:
        """Plain topics for peers and limits."""
        news = [
            NewTopic(
                name, num_partitions=partitions, replication_factor=1, config={"max.message.bytes": "8388608"}
            )
            for name in names
        ]
        client = admin(self.settings)
        for future in client.create_topics(news).values():
            future.result(10)


@contextlib.contextmanager
def bench(models: Sequence[str]) -> Iterator[Bench]:
    """Kafka, Triton and ClickHouse with these subjects' topics and tables; no service of ours."""
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as name:
        folder = Path(name)
        models_dir = write_models(folder / "models", list(models))
        environment = {"TIDEMILL_MODELS_DIR": str(models_dir)}
        with Stack(folder / "data", services=(), environment=environment) as stack:
            settings = msgspec.structs.replace(stack.settings, models_dir=models_dir)
            yield Bench(folder, settings, stack)


class Running:
    """A process that was started here and is ended here; it does not outlive this one, even if this is killed."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self.name = name
        self.log = folder / f"{name}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                list(command),
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
                preexec_fn=dying_with_parent(),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raises `StageFailed` with its last error if it has ended."""
        code = self._process.poll()
        if code is not None:
            tail = self.log.read_text(errors="replace")[-8000:]
            raise StageFailed(f"{self.name} ended with {code}: {last_error(tail)}")

    def end(self) -> None:
        """Tell it to stop, and make it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(GRACE_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        kill_group(self.pid)  # what it had started itself


class Service(Running):
    """One of Tidemill's own services."""

    def __init__(
        self, bench: Bench, service: str, slot: int = 0, through: Sequence[str] = (), **environment: str
    ) -> None:
        """`through` is a module, with arguments, that becomes the service that is named behind it."""
        (self._port,) = free_ports(1)
        super().__init__(
            f"{service}-{slot}" if slot else service,
            [sys.executable, "-P", "-m", *through, *SERVICES[service].arguments],
            {
                **bench.settings.environment(), "OMP_NUM_THREADS": "1", "TIDEMILL_SLOT": str(slot),
                "TIDEMILL_HTTP_PORT": str(self._port), **environment,
            },
            bench.folder,
        )  # fmt: skip

    def health(self) -> dict[str, Any]:
        """Its own word; {} while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self._port}/health", timeout=3) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            found = json.load(error)
        except OSError:
            self.check()
            return {}
        return found

    def partitions(self, topic: str) -> int:
        """How many partitions of `topic` it says that it has."""
        return sum(name.startswith(f"{topic}:") for name in self.health().get("stages", {}))

    def wait_ready(self, timeout_sec: float = 60.0) -> None:
        """Raises `StageFailed` when it is not ready in time."""
        deadline = time.monotonic() + timeout_sec
        while not (found := self.health()).get("ready"):
            if time.monotonic() > deadline:
                raise StageFailed(
                    f"{self.name} is not ready after {timeout_sec:.0f} s: {found.get('last_error')}"
                )
            time.sleep(0.05)


@contextlib.contextmanager
def running(*processes: Running) -> Iterator[None]:
    """End them, last first, whatever happens. Raises `StageFailed` if one ended by itself."""
    try:
        yield
        for process in processes:
            process.check()
    finally:
        for process in reversed(processes):
            process.end()


def wait_shared(members: Sequence[Service], topic: str, partitions: int, timeout_sec: float = 60.0) -> None:
    """Wait until the members of a group have all partitions of `topic` among them, and each has one.

    Raises:
        StageFailed: they have not.
    """
    deadline = time.monotonic() + timeout_sec
    while not (all(held := [member.partitions(topic) for member in members]) and sum(held) == partitions):
        if time.monotonic() > deadline:
            raise StageFailed(
                f"of {partitions} partitions of {topic} the members have {held} after {timeout_sec:.0f} s"
            )
        time.sleep(0.05)


def start_group(at: Bench, group: str, backlog: Backlog) -> None:
    """Let a group begin at the backlog's start."""
    start_group_at(at, group, backlog.topic, backlog.start)


def start_group_at(at: Bench, group: str, topic: str, offsets: Mapping[int, int]) -> None:
    """Let a group, none of whose members run, begin at these offsets by partition."""
    client = consumer(at.settings, group)
    client.commit(
        offsets=[TopicPartition(topic, p, offset) for p, offset in offsets.items()], asynchronous=False
    )
    client.close()
