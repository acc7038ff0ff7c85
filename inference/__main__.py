"""`python -m inference`: the gateway."""

import sys

import runtime.lean  # noqa: F401  first
from inference.gateway import serve
from runtime.service import run

if __name__ == "__main__":
    sys.exit(run("gateway", serve))
