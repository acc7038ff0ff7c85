"""A real tritonserver for a test, on ports of its choice."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compose.embedded.ports import free_ports
from compose.embedded.process import NotReady, dying_with_parent
from compose.embedded.triton import Triton
from tests.waiting import until
from triton_models.triton_config import write_repository

DEADLINE_SEC = 60.0


def described(folder: Path, models_dir: Path, artifacts_dir: Path) -> Triton:
    """A server of the models in `models_dir`, on free ports; it keeps its files in `folder`."""
    http, grpc, metrics = free_ports(3)
    return Triton(
        "127.0.0.1", http, grpc, metrics, folder / "repository",
        lambda repository: write_repository(models_dir, artifacts_dir, repository),
    )  # fmt: skip


@contextmanager
def started(process: Triton, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """It runs and is ready; ended at the end, if it was not before."""
    start = process.start()
    with log.open("ab") as output:
        running = subprocess.Popen(
            start.argv,
            env={**start.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=dying_with_parent(),
        )
    try:
        until(lambda: _is_ready(process, running, log), "it is ready")
        yield running
    finally:
        running.terminate()
        running.wait(DEADLINE_SEC)


def _is_ready(process: Triton, running: subprocess.Popen[bytes], log: Path) -> bool:
    assert running.poll() is None, log.read_text()
    try:
        process.ready()
    except (NotReady, OSError):
        return False
    return True
