"""A stack that runs, seen from outside: start one, ask how it is, end it. Used by the command line, the demo and the tests."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from compose.embedded.parts import ROOT, STATE_DIR
from schemas.errors import UserError

DEFAULT_DATA_DIR = STATE_DIR / "data"
DEFAULT_MODELS_DIR = ROOT / "triton_models"
_FLOCK = "hhqqi4x"  # struct flock on Linux x86-64: type, whence, start, length, pid


class AlreadyRunning(UserError):
    exit_code = 3


class NotRunning(UserError):
    exit_code = 7


class UnfinishedRestore(UserError):
    """A stack would begin with an empty folder where the restored one belongs."""


class StackFailed(UserError):
    """The supervisor ended, or did not become ready in time; the line says which process, and why."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_dir(data_dir: Path) -> Path:
    return data_dir / "run"


def restoring_dir(data_dir: Path) -> Path:
    """Where a restore into this folder works until all of it is there and proven."""
    return data_dir.with_name(f"{data_dir.name}.restoring")


def owner_pid(data_dir: Path) -> int | None:
    """The process id of the supervisor that holds this folder, by asking the kernel for the lock's owner; None if there is none."""
    file = run_dir(data_dir) / "lock"
    if not file.exists():
        return None
    with file.open() as lock:
        answer = fcntl.fcntl(lock, fcntl.F_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    kind, _, _, _, pid = struct.unpack(_FLOCK, answer)
    return None if kind == fcntl.F_UNLCK else pid


def models_dir(environment: Mapping[str, str]) -> Path:
    """The folder with a folder per model: TIDEMILL_MODELS_DIR, by default the project's own."""
    return Path(environment.get("TIDEMILL_MODELS_DIR") or DEFAULT_MODELS_DIR).resolve()


def description(data_dir: Path) -> dict[str, Any]:
    """What the supervisor wrote about itself: pid, ports, models, status_url. Raises `NotRunning`."""
    file = run_dir(data_dir) / "supervisor.json"
    if owner_pid(data_dir) is None or not file.exists():
        raise NotRunning(f"no stack runs on {data_dir}; start one with `tidemill up`")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def status(data_dir: Path) -> dict[str, Any]:
    """The supervisor's own account: `ready` and one row a process. Raises `NotRunning`."""
    url = description(data_dir)["status_url"]
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
    except OSError as error:
        raise NotRunning(f"the supervisor of {data_dir} does not answer at {url}: {error}") from error
    return found


def end(data_dir: Path, timeout_sec: float = 60.0) -> bool:
    """End the stack on this folder and wait until its lock is free. False if there was none."""
    pid = owner_pid(data_dir)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_sec
    while owner_pid(data_dir) == pid:
        if time.monotonic() > deadline:
            raise StackFailed(
                f"the supervisor (pid {pid}) of {data_dir} has not ended within {timeout_sec:.0f} s"
            )
        time.sleep(0.05)
    return True


class Started:
    """A supervisor that this process has started, and that ends with it unless `detach` was called."""

    def __init__(
        self,
        data_dir: Path,
        *,
        ports: str,
        services: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir.resolve()
        if (unfinished := restoring_dir(self.data_dir)).exists():
            raise UnfinishedRestore(
                f"{unfinished}: a restore into {self.data_dir} is at work or was interrupted; "
                "let it finish, run `tidemill restore` again, or remove that folder"
            )
        data_dir.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **(environment or {})}
        ours, theirs = socket.socketpair()
        command = [
            sys.executable,
            "-P",
            "-m",
            "compose.embedded.serve",
            "--data",
            str(self.data_dir),
            "--ports",
            ports,
            "--models",
            str(models_dir(environment)),
        ]
        if services is not None:
            command += ["--services", ",".join(services)]
        (data_dir / "logs").mkdir(exist_ok=True)
        with (data_dir / "logs" / "supervisor.log").open("ab") as log, theirs:
            self._process = subprocess.Popen(
                [*command, "--parent-fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=ROOT, env=environment,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we end the stack in order
            )  # fmt: skip
        self._socket = ours
        self._detached = False
        self._lines = ours.makefile("r")
        self.description: dict[str, Any] = self._next_message()["started"]

    def _next_message(self) -> dict[str, Any]:
        """The supervisor's next word. Raises `StackFailed` if it is a failure or if there is none, because it died."""
        line = self._lines.readline()
        if not line:
            raise StackFailed(f"the supervisor died; see {self.data_dir / 'logs' / 'supervisor.log'}")
        message: dict[str, Any] = json.loads(line)
        if "failed" in message:
            self._process.wait()
            raise StackFailed(message["failed"], message["exit_code"])
        return message

    def status(self) -> dict[str, Any]:
        """Raises `StackFailed` when the supervisor has ended, with its reason."""
        try:
            return status(self.data_dir)
        except NotRunning:
            self._process.wait()
            self._next_message()
            raise

    def wait_ready(self, timeout_sec: float = 120.0) -> dict[str, Any]:
        """Returns the status when all is ready. Raises `StackFailed`, naming the processes that are not."""
        deadline = time.monotonic() + timeout_sec
        while not (found := self.status())["ready"]:
            if time.monotonic() > deadline:
                raise StackFailed(f"not ready within {timeout_sec:.0f} s: {laggards(found)}")
            time.sleep(0.1)
        return found

    def detach(self) -> None:
        """Let the supervisor go on alone."""
        self._socket.sendall(b"detach\n")
        self._detached = True
        self._close()

    def end(self) -> int:
        """End the stack in order; returns the supervisor's exit code."""
        if self._process.poll() is None:
            self._process.terminate()
        code = self._process.wait()
        self._close()
        return code

    def _close(self) -> None:
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Started:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._detached:
            self.end()


def laggards(found: Mapping[str, Any]) -> str:
    """The processes that are not ready, each with its state and last error."""
    return "; ".join(
        f"{row['process']} is {row['state']}" + (f" ({row['last_error']})" if row["last_error"] else "")
        for row in found["processes"]
        if row["state"] not in ("ready", "done")
    )
