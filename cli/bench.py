"""`tidemill bench NAME`: each benchmark is a command of its own in `benchmarks/`, with its peer or its physical limit in the same run."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType

import click

from benchmarks import BENCHMARKS
from cli.lazy import LazyGroup


@click.command(cls=LazyGroup, table=BENCHMARKS)
def bench() -> None:
    """Measure this machine; every result stands beside its peer or its limit. With --json the last line is one object."""
    # While a stack starts, clients find coordinators that are still loading and try again: no news.
    logging.getLogger("librdkafka").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    """Ended by another program: what was started is ended and what was written is removed, as at any other exit."""
    signal.signal(number, signal.SIG_IGN)  # once is enough: a second must not stop the clearing up
    sys.exit(128 + number)
