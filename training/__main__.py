"""`python -m training [LANE]`: the trainer of updates, or of another lane."""

import os
import sys
from functools import partial

from runtime.service import MISTAKEN, run
from training.service import LANES, MAJORS, UPDATES, main

MAJORS_NICE = 10
"""A major takes minutes of a core: what is answered meanwhile, and updates, come first."""

if __name__ == "__main__":
    lane = sys.argv[1] if len(sys.argv) > 1 else UPDATES
    if lane not in LANES:
        print(f"python -m training: no lane {lane!r}: expected one of {', '.join(LANES)}", file=sys.stderr)
        sys.exit(MISTAKEN)
    if lane == MAJORS:
        os.nice(MAJORS_NICE)
    sys.exit(run(lane, partial(main, lane=lane)))
