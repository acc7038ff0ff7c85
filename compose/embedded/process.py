"""What the supervisor runs, as data, and the pure arithmetic of order and back-off; how a child is kept from outliving its parent."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before any fork: a child may only do very little


class NotReady(Exception):
    """A process answers, but not the way a working one would; the message is one line."""

    def __init__(self, message: str, detail: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.detail = detail or {}


class Broken(NotReady):
    """A process that no waiting mends: it is killed and started anew."""


@dataclass(frozen=True)
class Start:
    """How a process is started this time: its command line, and what it has in its environment beyond the supervisor's."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Process:
    """One process of a stack.

    `ready` is called in a thread, again and again: it returns details worth showing, or raises `NotReady`, `Broken` or `OSError`.
    A `once` process has to end with code 0 and is never restarted; what comes `after` it waits for that.
    """

    name: str
    start: Callable[[], Start]
    """Called in a thread before each start: also the place for files that the process needs, such as its configuration."""
    ready: Callable[[], Mapping[str, Any]] | None = None
    after: tuple[str, ...] = ()
    once: bool = False
    check_every_sec: float = 2.0
    grace_sec: float = 10.0
    """From SIGTERM to SIGKILL."""


def levels(processes: Sequence[Process]) -> list[list[Process]]:
    """Processes in the order of their start: each depends only on earlier lists. They end in the reverse order."""
    known = {process.name for process in processes}
    remaining = list(processes)
    started: set[str] = set()
    result = []
    while remaining:
        level = [
            process
            for process in remaining
            if all(name in started for name in process.after if name in known)
        ]
        if not level:
            raise ValueError(
                f"processes wait for each other: {', '.join(process.name for process in remaining)}"
            )
        result.append(level)
        started |= {process.name for process in level}
        remaining = [process for process in remaining if process not in level]
    return result


def dying_with_parent() -> Callable[[], None]:
    """A `preexec_fn`: the kernel kills the child when its parent dies, however that dies. It ties that to the parent's *thread*."""
    parent = os.getpid()

    def prepare() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return prepare


def kill_group(pid: int) -> None:
    """Kill a child that leads a process group, with what it has started; fine if nothing of that is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


BACKOFF_FIRST_SEC = 0.2
BACKOFF_LIMIT_SEC = 10.0
BACKOFF_RESET_SEC = 30.0


def next_backoff(previous_sec: float, ran_sec: float) -> float:
    """How long to wait before the next start; `previous_sec` is 0 before the first. A run of 30 s earns a fresh start.

    >>> next_backoff(0, ran_sec=1), next_backoff(0.2, ran_sec=1), next_backoff(8, ran_sec=1), next_backoff(8, ran_sec=60)
    (0.2, 0.4, 10.0, 0.2)
    """
    if previous_sec == 0 or ran_sec >= BACKOFF_RESET_SEC:
        return BACKOFF_FIRST_SEC
    return min(previous_sec * 2, BACKOFF_LIMIT_SEC)


def last_error(log_tail: str) -> str:
    """The line of a dead process's log that says most: the last one that speaks of an error, else the last one.

    >>> last_error("INFO started\\nTraceback (most recent call last):\\n  File x\\nValueError: no\\nINFO bye\\n")
    'ValueError: no'
    >>> last_error('{"level": "error", "message": "crashed", "traceback": "File x\\\\nKeyError: 1"}\\n')
    'crashed: KeyError: 1'
    """
    lines = [line.strip() for line in log_tail.splitlines() if line.strip()]
    errors = [line for line in lines if any(word in line for word in _ERROR_WORDS)]
    return _readable((errors or lines or [""])[-1])[:500]


_ERROR_WORDS = ("Error", "ERROR", '"error"', "Exception", "FATAL")


def _readable(line: str) -> str:
    """A JSON log line as a person would say it."""
    try:
        entry = json.loads(line)
        message, traceback = entry["message"], entry.get("traceback", "")
    except (ValueError, KeyError, TypeError):
        return line
    return f"{message}: {traceback.splitlines()[-1]}" if traceback else str(message)
