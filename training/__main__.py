"""`python -m training [LANE]`: the trainer of updates, or of another lane."""

import os
import sys
from functools import partial

from runtime.service import MISTAKEN, run
from training.lanes import LANES, MAJORS, UPDATES

MAJORS_NICE = 10
"""A major takes minutes of a core: what is answered meanwhile, and updates, come first."""


def main() -> int:
    """The exit code."""
    lane = sys.argv[1] if len(sys.argv) > 1 else UPDATES
    if lane not in LANES:
        print(f"python -m training: no lane {lane!r}: expected one of {', '.join(LANES)}", file=sys.stderr)
        return MISTAKEN
    if lane == MAJORS:
        os.nice(MAJORS_NICE)
    # After it: to import torch alone takes seconds of a core.
    from training.service import serve

    return run(lane, partial(serve, lane=lane))


if __name__ == "__main__":
    sys.exit(main())
