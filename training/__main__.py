"""`python -m training`: the trainer."""

import sys

from runtime.service import run
from training.service import GROUP, main

if __name__ == "__main__":
    sys.exit(run(GROUP, main))
