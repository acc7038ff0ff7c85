"""`python -m control`: the control room."""

import sys

import runtime.lean  # noqa: F401  first
from control.service import main
from runtime.service import run

if __name__ == "__main__":
    sys.exit(run("control", main))
