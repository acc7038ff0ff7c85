"""When a broker counts as warm."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks import warm as warming
from benchmarks.warm import spent, warm


def test_work_is_repeated_until_the_compiler_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    now, done = [0.0], [0]
    taken = iter([8.0, 2.0, 0.9, 5.0])
    used = {"7": 0.0}

    def work() -> None:
        done[0] += 1
        now[0] += 10.0
        used["7"] += next(taken)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(warming, "compiler_sec", lambda _pid: dict(used))
    at = cast("Any", SimpleNamespace(pids=lambda: {"kafka": 1}))
    warm(at, work, once=False)
    assert done == [3]
    warm(at, work, once=True)
    assert done == [4]


def test_a_compiler_that_never_rests_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now, done = [0.0], [0]

    def work() -> None:
        done[0] += 1
        now[0] += 50.0

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(warming, "compiler_sec", lambda _pid: {"7": now[0]})
    warm(cast("Any", SimpleNamespace(pids=lambda: {"kafka": 1})), work, once=False)
    assert done == [3]


def test_a_thread_that_ended_is_left_out() -> None:
    assert spent({"7": 1.0, "8": 2.0}, {"7": 1.5, "9": 0.25}) == 0.75
