"""What is freed and taken again costs no page faults, and what threads leave behind is given back."""

from __future__ import annotations

import subprocess
import sys

from runtime.memory import KEPT_BYTES

ROUNDS = 20
BLOCKS = 3
FAULTS = f"""
import resource
from runtime.memory import keep_freed
{{told}}
size = {KEPT_BYTES // (BLOCKS + 1)}
def rounds(n):
    for _ in range(n):
        blocks = [b"x" * size for _ in range({BLOCKS})]
        del blocks
rounds(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds({ROUNDS})
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(told: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(told=told)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_freed_memory_is_kept() -> None:
    # The launcher takes no other C library than glibc.
    assert faults("assert keep_freed()") < faults("") / 10


LEFT_BEHIND_MB = 80
RESIDENT = f"""
import os, threading
from runtime.memory import give_back_freed, keep_freed
assert keep_freed()
start = threading.Barrier(4)
held = []
def work():
    start.wait()  # all at once: each in a heap of its own
    mine = [b"x" * 65_536 for _ in range({LEFT_BEHIND_MB} * 4)]
    held.append(mine[-1])  # at the end of the heap, so that what is before it stays
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1_000_000
before = resident_mb()
assert not give_back_freed(above_bytes=(before + 100) * 1_000_000)
assert resident_mb() > before - 5
assert give_back_freed(above_bytes=0)
print(before - resident_mb())
"""


def test_what_threads_left_behind_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= LEFT_BEHIND_MB / 2
