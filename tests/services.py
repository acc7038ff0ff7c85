"""A service in a process of its own, as its supervisor would start it, and a broker for tests that break theirs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from compose.embedded.kafka import Kafka, KafkaProbe
from compose.embedded.ports import free_ports
from compose.embedded.process import NotReady, dying_with_parent
from runtime.settings import Settings
from tests.waiting import until

STOP_SEC: Final = 30.0


class Service:
    """`python -m ARGUMENTS`, killed and started at will. Its port stays the same."""

    def __init__(self, settings: Settings, log: Path, *arguments: str, **environment: str) -> None:
        (self.port,) = free_ports(1)
        self.log = log
        self._argv = [sys.executable, "-m", *arguments]
        self._environment = {
            **os.environ,
            **settings.environment(),
            "TIDEMILL_HTTP_PORT": str(self.port),
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, env=self._environment, stdout=log, stderr=log, preexec_fn=dying_with_parent()
            )
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that was started last; it may have ended."""
        assert self._process is not None, "it was never started"
        return self._process

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def kill(self) -> None:
        """SIGKILL, and reap. Nothing, if it has ended."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """SIGKILL, and a successor."""
        self.kill()
        self.start()

    def stop(self) -> int:
        """SIGTERM; the exit code. One that does not end in time is killed."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_SEC)
        finally:
            self.kill()

    def health(self) -> dict[str, Any]:
        """Its own word, {} while nobody listens. Fails if it has ended."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            found = json.load(error)
        except OSError:
            assert self.exit_code is None, self.log.read_text()[-4000:]
            return {}
        return found

    def stages(self) -> dict[str, Any]:
        """Its stages by name."""
        found: dict[str, Any] = self.health().get("stages", {})
        return found

    def stage(self, name: str) -> dict[str, Any]:
        """One of them, {} if it has none of that name."""
        found: dict[str, Any] = self.stages().get(name, {})
        return found

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def wait_ready(self) -> None:
        until(lambda: self.health().get("ready"), f"ready: {self.log}")


@contextlib.contextmanager
def service(settings: Settings, log: Path, *arguments: str, **environment: str) -> Iterator[Service]:
    """A started service that does not outlive the block."""
    running = Service(settings, log, *arguments, **environment).start()
    try:
        yield running
    finally:
        running.kill()


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[str]:
    """A Kafka broker of its own, its data below `folder`; its address."""
    port, controller_port = free_ports(2)
    starting = Kafka("127.0.0.1", port, controller_port, folder / "kafka").start()
    with (folder / "kafka.log").open("wb") as log:
        process = subprocess.Popen(
            starting.argv, env={**os.environ, **starting.environment}, stdout=log, stderr=log,
            preexec_fn=dying_with_parent(),
        )  # fmt: skip
    try:
        address = f"127.0.0.1:{port}"
        until(lambda: _answers(KafkaProbe(address)), "the broker answers")
        yield address
    finally:
        process.kill()
        process.wait()


def _answers(probe: KafkaProbe) -> bool:
    try:
        probe()
    except NotReady:
        return False
    return True
