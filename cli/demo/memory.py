"""Memory of a tree of processes, shared pages counted once: the sum of their proportional set sizes."""

from __future__ import annotations

import threading
from typing import Final

import psutil

SAMPLE_SEC: Final = 2.0


class PeakMemory:
    """Samples this process and all below it until it is left. `peak_mb` is the highest sum seen."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self.peak_mb = max(self.peak_mb, tree_pss_mb(psutil.Process()))
            if self._stop.wait(SAMPLE_SEC):
                return


def tree_pss_mb(root: psutil.Process) -> float:
    """MiB of proportional set size of `root` and its descendants; a process that ends meanwhile counts as 0."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total / 2**20
