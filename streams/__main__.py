"""`python -m streams NAME`: the processes of the observation path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Final

import runtime.lean  # noqa: F401  first

SERVICES: Final = {
    "sink": "streams.sink.service:main",
    "labels": "streams.labels.service:main",
    "worker": "streams.worker.service:main",
}
"""Name → module:function, imported only when it is the one asked for. The function returns the exit code."""


def main(arguments: list[str]) -> int:
    """Run the named service."""
    if len(arguments) != 1 or arguments[0] not in SERVICES:
        print(f"usage: python -m streams {'|'.join(SERVICES)}", file=sys.stderr)
        return 2
    module, _, function = SERVICES[arguments[0]].partition(":")
    start: Callable[[], int] = getattr(importlib.import_module(module), function)
    return start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
