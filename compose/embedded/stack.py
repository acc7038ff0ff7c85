"""What processes make a stack: the table, their addresses, and the checks that say they work."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec

from compose.embedded import running
from compose.embedded.kafka import Kafka, KafkaProbe
from compose.embedded.ports import HOST, PortTaken, free_ports, is_free, owner
from compose.embedded.process import NotReady, Process, Start
from compose.embedded.triton import Triton
from compose.embedded.variation import Variation, variation
from runtime.settings import Settings, load_settings
from schemas.errors import UserError

WRITER = "tidemill"


@dataclass(frozen=True)
class Ports:
    kafka: int = 9092
    kafka_controller: int = 9093
    triton_http: int = 8000
    triton_grpc: int = 8001
    triton_metrics: int = 8002
    clickhouse: int = 8123


@dataclass(frozen=True)
class Service:
    """One of Tidemill's own processes: `python -m ARGUMENTS`."""

    arguments: tuple[str, ...]
    after: tuple[str, ...]
    replicas: int = 1


# The order is that of `status` and of the way of an event.
SERVICES: Mapping[str, Service] = {
    "gateway": Service(("inference",), after=("setup", "triton")),
    "sink": Service(("streams", "sink"), after=("setup",)),
    "labels": Service(("streams", "labels"), after=("setup",)),
    "worker": Service(("streams", "worker"), after=("setup",)),
    "training": Service(("training",), after=("setup",)),
    "majors": Service(("training", "majors"), after=("setup",)),
    "control": Service(("control",), after=("setup", "triton")),
}


class Stack:
    """A stack for a test or a demo: ready when entered, ended when left, whatever happens.

    `services=()` starts the infrastructure with its topics and migrations only; None starts everything. It runs in processes of its own
    and ends with this process even if that is killed.
    """

    def __init__(
        self, data_dir: Path, *, ports: str = "ephemeral", services: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None, ready_timeout_sec: float = 120.0,
    ) -> None:  # fmt: skip
        self._start: Callable[[], running.Started] = partial(
            running.Started, data_dir, ports=ports, services=services, environment=environment
        )
        self._ready_timeout_sec = ready_timeout_sec
        self._detached = False

    def __enter__(self) -> Self:
        self._started = self._start()
        try:
            self._started.wait_ready(self._ready_timeout_sec)
        except BaseException:
            self._started.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self._detached:
            self._started.end()

    def detach(self) -> None:
        """Let it go on alone; `tidemill down --data …` ends it."""
        self._started.detach()
        self._detached = True

    @property
    def data_dir(self) -> Path:
        return self._started.data_dir

    @property
    def settings(self) -> Settings:
        """What a service of this stack is told; with them a test is one more client."""
        return running_settings(self.data_dir)

    def status(self) -> dict[str, dict[str, Any]]:
        """One row a process, by its name."""
        return {row["process"]: row for row in self._started.status()["processes"]}

    def kill(self, process: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a process that runs; returns its pid, which the next one will not have."""
        row = self.status()[process]
        if row["pid"] is None:
            raise running.StackFailed(f"{process} has no process to kill: it is {row['state']}")
        os.kill(row["pid"], number)
        return int(row["pid"])

    def restart_count(self, process: str) -> int:
        return int(self.status()[process]["restarts"])

    def wait_ready(self, timeout_sec: float = 60.0) -> None:
        """Until all is ready (again). Raises `StackFailed`, naming what is not."""
        self._started.wait_ready(timeout_sec)


def running_settings(data_dir: Path = running.DEFAULT_DATA_DIR) -> Settings:
    """The settings of the stack that runs on this folder. Raises `NotRunning`."""
    described = running.description(data_dir)
    return settings(data_dir.resolve(), Ports(**described["ports"]), Path(described["models"]))


def choose_ports(mode: str) -> Ports:
    """`fixed`: the usual ones, which must be free. `ephemeral`: free ones.

    Raises:
        PortTaken: names the port, what wanted it and, where the system shows it, who has it.
    """
    if mode == "ephemeral":
        return Ports(*free_ports(len(asdict(Ports()))))
    ports = Ports()
    for name, port in asdict(ports).items():
        if not is_free(port):
            raise PortTaken(
                f"port {port} ({name}) is taken by {owner(port)}; end it, or use --ports ephemeral"
            )
    return ports


def writer_password_file(data_dir: Path) -> Path:
    """The file with the password of ClickHouse's writing user, made once per data folder and readable by its owner only."""
    file = data_dir / "clickhouse-writer-password"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(24))
    return file


def settings(data_dir: Path, ports: Ports, models_dir: Path) -> Settings:
    """What the services are told, and what a client of this stack needs: the environment's settings with the addresses of this stack."""
    return msgspec.structs.replace(
        load_settings(),
        kafka_bootstrap=f"{HOST}:{ports.kafka}",
        triton_grpc_url=f"{HOST}:{ports.triton_grpc}",
        triton_http_url=f"http://{HOST}:{ports.triton_http}",
        clickhouse_url=f"http://{HOST}:{ports.clickhouse}",
        clickhouse_user=WRITER,
        clickhouse_password=writer_password_file(data_dir).read_text(),
        artifacts_dir=data_dir / "artifacts",
        models_dir=models_dir,
    )


def processes(data_dir: Path, ports: Ports, models_dir: Path, services: Sequence[str]) -> list[Process]:
    """The stack: infrastructure, set-up (topics and migrations), and the named `services`."""
    common = settings(data_dir, ports, models_dir)
    environment = {**common.environment(), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    varied = variation()
    return [
        *_infrastructure(data_dir, ports, common, varied),
        Process(
            "setup", lambda: Start(_python(*varied.arguments.get("setup", ("compose.setup",))), environment),
            after=("kafka", "clickhouse"), once=True,
        ),
        *(process for name in services for process in _service(name, environment, varied)),
    ]  # fmt: skip


def _infrastructure(data_dir: Path, ports: Ports, common: Settings, varied: Variation) -> list[Process]:
    kafka = Kafka(
        HOST, ports.kafka, ports.kafka_controller, data_dir / "kafka", listeners=varied.kafka_listeners
    )
    triton = Triton(
        HOST, ports.triton_http, ports.triton_grpc, ports.triton_metrics, data_dir / "triton",
        lambda repository: write_repository(common, repository),
    )  # fmt: skip
    password = writer_password_file(data_dir)
    clickhouse = [
        "compose.embedded.clickhouse", "--data", str(data_dir / "clickhouse"), "--host", HOST,
        "--port", str(ports.clickhouse), "--writer-user", WRITER, "--writer-password-file", str(password),
    ]  # fmt: skip
    return [
        # A stop writes the whole of what is buffered; a broker that is killed has to check its log at the next start.
        Process("kafka", kafka.start, KafkaProbe(common.kafka_bootstrap), check_every_sec=10, grace_sec=20),
        Process(
            "clickhouse",
            lambda: Start(_python(*clickhouse)),
            lambda: query(common.clickhouse_url),
            grace_sec=20,
        ),
        Process("triton", triton.start, triton.ready),
    ]


def write_repository(common: Settings, repository_dir: Path) -> list[str]:
    """Triton's model repository, from the specs. Returns the models' names."""
    from triton_models import triton_config  # it alone knows models: nothing else needs it

    names: list[str] = triton_config.write_repository(common.models_dir, common.artifacts_dir, repository_dir)
    return names


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", *arguments]


def _service(name: str, environment: Mapping[str, str], varied: Variation) -> list[Process]:
    if name not in SERVICES:
        raise UserError(f"no service is named {name!r}; there are {', '.join(SERVICES)}")
    service = SERVICES[name]
    replicas = varied.replicas.get(name, service.replicas)
    arguments = tuple(varied.arguments.get(name, service.arguments))
    own = {**environment, **varied.environment.get(name, {})}
    result = []
    for slot in range(replicas):
        life = ServiceLife(arguments, {**own, "TIDEMILL_SLOT": str(slot)})
        replica = name if replicas == 1 else f"{name}-{slot}"
        result.append(Process(replica, life.start, life.ready, after=service.after))
    return result


@dataclass
class ServiceLife:
    """A service's port is chosen before each start, so that one taken meanwhile costs a restart and no more."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    port: int = 0

    def start(self) -> Start:
        (self.port,) = free_ports(1)
        return Start(_python(*self.arguments), {**self.environment, "TIDEMILL_HTTP_PORT": str(self.port)})

    def ready(self) -> Mapping[str, Any]:
        return health(f"http://{HOST}:{self.port}/health")


def health(url: str) -> Mapping[str, Any]:
    """A service's own word. Raises `NotReady` with its last error while it says that it is not ready."""
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            snapshot: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        snapshot = json.load(error)
    if not snapshot.get("ready"):
        raise NotReady(snapshot.get("last_error") or "says that it is not ready", snapshot)
    return snapshot


def query(url: str) -> Mapping[str, Any]:
    """ClickHouse answers a query."""
    with urllib.request.urlopen(f"{url}/?query=SELECT%20version()", timeout=5) as answer:
        return {"version": answer.read().decode().strip()}
