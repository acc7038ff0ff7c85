"""The stack that is broken: a small model with a live and a shadow arm, replicas, and a proxy on every link; and a file to train on."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import psutil
import pyarrow as pa

from benchmarks import deploy
from benchmarks.faults import rows
from benchmarks.faults.proxy import Links
from benchmarks.faults.rows import LIVE_ARM, LIVE_VERSION, MODEL, SHADOW_ARM, SHADOW_VERSION, Served
from benchmarks.faults.schedule import LINKS, SPARES
from compose.embedded.ports import HOST, free_ports
from compose.embedded.running import Started
from compose.embedded.stack import SERVICES, running_settings
from compose.embedded.variation import VARIABLE, Listener, Variation
from features.columns import Columns
from runtime.clock import now_ms
from runtime.kafka import admin, producer, topic_ids
from runtime.settings import Settings
from schemas.events import Arm, RouteTable
from schemas.spec import SPEC_FILE
from schemas.topics import REQUESTS, ROUTES
from training.publish import LINEAGE, Lineage
from training.rows import Rows, write_snapshot

READY_SEC: Final = 120.0
REPLICAS: Final = {"gateway": 3, "sink": 3, "labels": 3, "worker": 3}
"""The last of each runs only while a scale-out lasts."""
FILE_ROWS: Final = 200
STUB: Final = "triton_python_backend_stub"


class World:
    """The stack, from its start to its end; a context. `mutation` names a bug of `benchmarks.faults.bugs` and the services it is put in."""

    settings: Settings
    """As a client outside of all proxies is told."""
    artifacts: list[str]
    """Of the live and of the shadow version."""
    snapshot: str
    """sha256 of the rows that a `train` command names."""

    def __init__(
        self, folder: Path, links: Links, served: Served, mutation: tuple[str, tuple[str, ...]] | None
    ) -> None:
        self.folder = folder
        self.links = links
        self._served = served
        self._mutation = mutation

    def __enter__(self) -> World:
        models_dir, data_dir = self.folder / "models", self.folder / "data"
        model_dir = models_dir / MODEL
        model_dir.mkdir(parents=True)
        (model_dir / SPEC_FILE).write_text(self._served.spec_toml())
        (model_dir / "model.py").write_text(rows.MODULE)
        store = Settings(models_dir=models_dir, artifacts_dir=data_dir / "artifacts")
        self.artifacts = [
            deploy.write_version(store, MODEL, version, seed)
            for seed, version in enumerate((LIVE_VERSION, SHADOW_VERSION))
        ]
        for artifact in self.artifacts:
            # An update asks which file its base was fitted on: these on none.
            lineage = store.artifacts_dir / MODEL / artifact / LINEAGE
            lineage.write_bytes(msgspec.json.encode(Lineage(retrain_id="")))
        self.snapshot = write_snapshot(store.artifacts_dir, MODEL, _file(self._served.width))
        variation = self._variation()
        file = self.folder / "variation.json"
        file.write_bytes(msgspec.json.encode(variation))
        environment = {VARIABLE: str(file), "TIDEMILL_MODELS_DIR": str(models_dir)}
        self._started = Started(data_dir, ports="ephemeral", environment=environment)
        try:
            self._connect(variation)
            self._wait_setup()
            self.settings = running_settings(data_dir)
            self.write_route(self.artifacts)
            self.release("control")
            self._started.wait_ready(READY_SEC)
        except BaseException:
            self._started.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._started.end()

    def _variation(self) -> Variation:
        listeners, environment = {}, {}
        for name in SERVICES:
            if f"{name}-kafka" not in LINKS:
                continue  # a service that no fault hits goes straight to the servers
            (port,) = free_ports(1)
            listeners[name] = Listener(port=port, advertised_port=self.links.port(f"{name}-kafka"))
            environment[name] = {"TIDEMILL_KAFKA_BOOTSTRAP": f"{HOST}:{listeners[name].advertised_port}"}
            if f"{name}-triton" in LINKS:
                environment[name]["TIDEMILL_TRITON_GRPC_URL"] = f"{HOST}:{self.links.port(f'{name}-triton')}"
            if f"{name}-clickhouse" in LINKS:
                environment[name]["TIDEMILL_CLICKHOUSE_URL"] = (
                    f"http://{HOST}:{self.links.port(f'{name}-clickhouse')}"
                )
        arguments: dict[str, list[str]] = {}
        if self._mutation is not None:
            bug, services = self._mutation
            for service in services:
                own = ("compose.setup",) if service == "setup" else SERVICES[service].arguments
                arguments[service] = ["benchmarks.faults.mutant", bug, *own]
        # Control would read the route before it is written, and hold to what it read.
        return Variation(
            replicas=REPLICAS, held=[*SPARES, "control"], environment=environment, kafka_listeners=listeners,
            arguments=arguments,
        )  # fmt: skip

    def _connect(self, variation: Variation) -> None:
        ports: Mapping[str, int] = self._started.description["ports"]
        upstream = {"triton": ports["triton_grpc"], "clickhouse": ports["clickhouse"]}
        for link in LINKS:
            service, _, server = link.partition("-")
            self.links.connect(
                link, variation.kafka_listeners[service].port if server == "kafka" else upstream[server]
            )

    def _wait_setup(self) -> None:
        deadline = time.monotonic() + READY_SEC
        while self.status()["setup"]["state"] != "done":
            if time.monotonic() > deadline:
                raise TimeoutError("the stack's topics and tables were not made in time")
            time.sleep(0.05)

    def write_route(self, artifacts: list[str]) -> None:
        """The first artifact answers, the second is its shadow and is being measured, so that no other major takes its place."""
        arms = [
            Arm(name=LIVE_ARM, role="live", version=LIVE_VERSION, artifact=artifacts[0]),
            Arm(name=SHADOW_ARM, role="shadow", version=SHADOW_VERSION, artifact=artifacts[1]),
        ]
        table = RouteTable(
            event_id=str(uuid.uuid4()), model=MODEL, at_ms=now_ms(), revision=1, stage="shadow", arms=arms,
            champion=arms[0].version, major=arms[0].version, retained=artifacts,
        )  # fmt: skip
        client = producer(self.settings)
        client.produce(ROUTES.name, msgspec.json.encode(table), MODEL.encode())
        if client.flush(10):
            raise TimeoutError("the route was not taken within 10 s")

    # ── processes ──

    def restarts(self) -> dict[str, int]:
        """How often each process was started again, by name."""
        return {name: int(row["restarts"]) for name, row in self.status().items()}

    def wait_whole(self, deadline_sec: float) -> None:
        """Return when every process that is not held is ready.

        Raises:
            TimeoutError: names those that are not.
        """
        deadline = time.monotonic() + deadline_sec
        while missing := [
            f"{name} is {row['state']}: {row['last_error']}"
            for name, row in self.status().items()
            if row["state"] not in ("ready", "done") and (name not in SPARES or row["state"] != "held")
        ]:
            if time.monotonic() > deadline:
                raise TimeoutError("; ".join(missing))
            time.sleep(0.2)

    def status(self) -> dict[str, dict[str, Any]]:
        """One row a process, by name."""
        return {row["process"]: row for row in self._started.status()["processes"]}

    def pid(self, target: str) -> int | None:
        """The pid of a process, or of Triton's Python stub; None while there is none."""
        if target != "stub":
            found: int | None = self.status()[target]["pid"]
            return found
        server = self.status()["triton"]["pid"]
        if server is None:
            return None
        try:
            children = psutil.Process(server).children(recursive=True)
        except psutil.NoSuchProcess:
            return None
        return next((int(child.pid) for child in children if child.name()[:15] == STUB[:15]), None)

    def signal(self, target: str, number: signal.Signals, wait_sec: float = 30.0) -> int:
        """Send a signal, as soon as there is a process to get it; its pid."""
        deadline = time.monotonic() + wait_sec
        while True:
            pid = self.pid(target)
            if pid is not None:
                try:
                    os.kill(pid, number)
                    return pid
                except ProcessLookupError:
                    pass  # it has died since: its successor gets it
            if time.monotonic() > deadline:
                raise TimeoutError(f"{target} had no process for {wait_sec:.0f} s")
            time.sleep(0.05)

    def resume(self, pid: int) -> None:
        """Let a stopped process go on, unless it has died meanwhile."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def hold(self, process: str) -> None:
        """End a process in order and let it stay so."""
        self._ask(process, "hold")

    def release(self, process: str) -> None:
        """Let a held process run."""
        self._ask(process, "release")

    def _ask(self, process: str, what: str) -> None:
        url = self._started.description["status_url"].removesuffix("/status")
        request = urllib.request.Request(f"{url}/processes/{process}/{what}", method="POST")
        with urllib.request.urlopen(request, timeout=60):
            pass

    # ── the request topic ──

    def request_topic_id(self) -> uuid.UUID:
        """Kafka's id of the request topic as it is now."""
        topic = REQUESTS.for_model(MODEL)
        return topic_ids(admin(self.settings), [topic])[topic]


def _file(width: int) -> Rows:
    """What a person would train on: labels by the toss of a coin, as the feedback's are."""
    drawn = np.random.default_rng(0)
    numbers = drawn.random((FILE_ROWS, width), np.float32)
    targets = drawn.integers(0, len(rows.CLASSES), FILE_ROWS).astype(np.float64)
    return Rows.from_file(Columns(numbers, pa.array([], pa.string())), targets)


def memory_bytes(pid: int, *, children: bool = True) -> int:
    """Resident memory of a process and its children; 0 if it has gone."""
    try:
        process = psutil.Process(pid)
        family = [process, *(process.children(recursive=True) if children else ())]
        return sum(int(each.memory_info().rss) for each in family)
    except psutil.Error:
        return 0
