"""What is freed and taken again costs no page faults."""

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
