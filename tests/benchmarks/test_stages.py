"""What a benchmark starts does not outlive it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

# The context of a benchmark, small: a folder, a process that writes there, and the group's handling of SIGTERM.
SCRIPT = """
import sys, tempfile, time
from pathlib import Path
from benchmarks.stages import Running, running
from cli.bench import bench

bench.callback()
with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
    child = Running("child", [sys.executable, "-c", "import time; time.sleep(600)"], {}, Path(folder))
    with running(child):
        print(child.pid, folder, flush=True)
        time.sleep(600)
"""
DEADLINE_SEC = 20.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_benchmark_that_is_killed_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    try:
        assert parent.stdout is not None
        pid, _, folder = parent.stdout.readline().strip().partition(" ")
        child = psutil.Process(int(pid))
        assert child.is_running()
        os.kill(parent.pid, number)
        code = parent.wait(DEADLINE_SEC)
        deadline = time.monotonic() + DEADLINE_SEC
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the child lives on"
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()
    if number == signal.SIGTERM:
        assert code == 128 + signal.SIGTERM
        assert not Path(folder).exists(), "what it wrote is gone too"
