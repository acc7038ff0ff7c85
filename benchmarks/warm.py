"""Work a broker until its compiler rests.

A JVM compiles what it does often while it does it: in its first minute of load the compiler takes as much of the broker's CPU as the records do,
and what it has not compiled yet is slower. A broker runs for weeks: what is measured is how it works then, for ours, the limits and the peers alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from benchmarks.report import progress
from benchmarks.stages import Bench

COMPILERS: Final = ("C1 ", "C2 ")
"""How the names of their threads begin."""
REST_CORES: Final = 0.1
MOST_SEC: Final = 120.0
TICK_SEC: Final = 1 / os.sysconf("SC_CLK_TCK")


def warm(at: Bench, work: Callable[[], object], *, once: bool) -> None:
    """Do `work`, and again until the broker's compiler takes less than `REST_CORES` of a core meanwhile, for `MOST_SEC` at most."""
    broker = at.pids()["kafka"]
    end = time.monotonic() + MOST_SEC
    while True:
        began, before = time.monotonic(), compiler_sec(broker)
        work()
        cores = spent(before, compiler_sec(broker)) / (time.monotonic() - began)
        progress(f"    warming: the broker's compiler took {cores:.2f} cores")
        if once or cores < REST_CORES or time.monotonic() > end:
            return


def compiler_sec(pid: int) -> dict[str, float]:
    """Compiler thread of a JVM → its CPU seconds."""
    found = {}
    for file in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            text = file.read_text()
        except OSError:  # it has ended
            continue
        name, _, fields = text.partition("(")[2].rpartition(")")
        if name.startswith(COMPILERS):
            # After the name: state, 10 numbers, then user and system time.
            found[file.parent.name] = sum(map(int, fields.split()[11:13])) * TICK_SEC
    return found


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """CPU seconds of all threads in between; of one that has ended nothing is known.

    >>> spent({"7": 1.0, "8": 2.0}, {"7": 1.5, "9": 0.25})
    0.75
    """
    return sum(sec - before.get(thread, 0.0) for thread, sec in after.items())
