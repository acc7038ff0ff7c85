"""`python -m benchmarks.faults.mutant BUG MODULE ARGUMENTS…`: a service with one seeded bug."""

from __future__ import annotations

import importlib
import runpy
import sys


def main(arguments: list[str]) -> None:
    """Put the bug in, then be the service."""
    bug, module, *rest = arguments
    importlib.import_module(f"benchmarks.faults.bugs.{bug}").apply()
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
