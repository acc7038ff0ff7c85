"""A server whose Python stub died while it was loaded waits for ever: the probe says so, and of no other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest

from compose.embedded.ports import free_ports
from compose.embedded.process import Broken, dying_with_parent
from compose.embedded.triton import STUB_GONE_SEC, STUBLESS_SEC, Triton


class Loading:
    """A server that does not listen yet, at a time of the test's choosing, and processes with the command lines of its stubs."""

    def __init__(self, folder: Path, models: list[str]) -> None:
        self.now_sec = 0.0
        http, grpc, metrics = free_ports(3)
        self.triton = Triton(
            "127.0.0.1", http, grpc, metrics, folder, lambda _: models, clock=lambda: self.now_sec
        )
        start = self.triton.start()
        self._prefix = next(each for each in start.argv if "shm-region-prefix-name=" in each).partition(
            "prefix-name="
        )[2]
        self.stubs: list[subprocess.Popen[bytes]] = []

    def stub(self, model: str) -> subprocess.Popen[bytes]:
        line = ["-c", "import time; time.sleep(600)", f"{self._prefix}1", f"{model}_0_0"]
        self.stubs.append(subprocess.Popen([sys.executable, *line], preexec_fn=dying_with_parent()))
        return self.stubs[-1]

    def after(self, sec: float) -> None:
        """Ask it, so much later."""
        self.now_sec += sec
        self.triton.ready()


@pytest.fixture
def loading(tmp_path: Path) -> Iterator[Loading]:
    made = Loading(tmp_path, ["first", "second"])
    yield made
    for stub in made.stubs:
        stub.kill()
        stub.wait()


def test_a_stub_that_is_gone_while_the_server_does_not_listen_is_missed_after_a_while(
    loading: Loading,
) -> None:
    loading.stub("first")
    second = loading.stub("second")
    for _ in range(3):
        # However long they load.
        with pytest.raises(URLError):
            loading.after(STUBLESS_SEC)
    second.kill()
    second.wait()
    with pytest.raises(URLError):
        loading.after(0.0)
    with pytest.raises(URLError):
        loading.after(STUB_GONE_SEC - 1)
    with pytest.raises(Broken, match="stub of second died"):
        loading.after(1.0)
    loading.triton.start()
    loading.stub("second")
    with pytest.raises(URLError):
        loading.after(0.0)


def test_a_server_that_gets_no_stub_at_all_is_broken_too(loading: Loading) -> None:
    with pytest.raises(URLError):
        loading.after(0.0)
    with pytest.raises(Broken, match="every model"):
        loading.after(STUBLESS_SEC)
