"""The supervisor over real, tiny processes."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from compose.embedded import supervisor as supervisor_module
from compose.embedded.process import Broken, NotReady, Process, Start
from compose.embedded.supervisor import Supervisor

DEADLINE_SEC = 20.0


def python(
    name: str, code: str, *after: str, once: bool = False, ready: bool = True, grace_sec: float = 5
) -> Process:
    check: Callable[[], dict[str, str]] | None = (lambda: {}) if ready and not once else None
    return Process(
        name,
        lambda: Start([sys.executable, "-c", code]),
        check,
        after,
        once,
        check_every_sec=0.05,
        grace_sec=grace_sec,
    )


SLEEPER = "import time; time.sleep(600)"


def supervised(
    tmp_path: Path, processes: list[Process], body: Callable[[Supervisor], Awaitable[None]]
) -> tuple[Supervisor, list[str]]:
    """Run `body` beside a started supervisor, then stop it. Returns it and the failures it reported."""
    failures: list[str] = []

    async def run() -> Supervisor:
        supervisor = Supervisor(processes, tmp_path, failures.append)
        supervisor.start()
        try:
            await body(supervisor)
        finally:
            await supervisor.stop()
        return supervisor

    return asyncio.run(run()), failures


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SEC
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


def test_a_killed_process_is_restarted_and_its_end_is_on_record(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        record = supervisor.records["one"]
        await until(lambda: supervisor.is_ready)
        assert record.pid
        os.kill(record.pid, signal.SIGKILL)
        await until(lambda: record.restarts == 1 and record.state == "ready")
        assert "killed by SIGKILL" in record.last_error

    supervised(tmp_path, [python("one", SLEEPER)], body)


def test_a_crash_is_reported_with_the_line_that_explains_it(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.records["one"].restarts >= 2)

    supervisor, _ = supervised(
        tmp_path, [python("one", "raise ValueError('no such thing')", ready=False)], body
    )
    assert supervisor.records["one"].last_error == "ended with code 1; ValueError: no such thing"


def test_a_process_starts_only_when_those_before_it_are_ready_or_done(tmp_path: Path) -> None:
    opened = tmp_path / "opened"

    def ready() -> dict[str, str]:
        if not opened.exists():
            raise NotReady("still closed")
        return {}

    first = Process("first", lambda: Start([sys.executable, "-c", SLEEPER]), ready, check_every_sec=0.05)

    async def body(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.records["first"].complaint == "still closed")
        assert supervisor.records["second"].state == "waiting"
        opened.touch()
        await until(lambda: supervisor.is_ready)
        assert supervisor.records["step"].state == "done"

    supervised(
        tmp_path, [first, python("step", "", "first", once=True), python("second", SLEEPER, "step")], body
    )


def test_a_step_that_fails_is_reported_once_and_nothing_after_it_starts(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.records["step"].state == "failed")

    step = python("step", "import sys; sys.exit('Error: table exists')", once=True)
    supervisor, failures = supervised(tmp_path, [step, python("after", SLEEPER, "step")], body)
    assert failures == ["step failed: ended with code 1; Error: table exists"]
    assert supervisor.records["after"].started_at is None


def test_a_ready_process_that_stops_answering_is_shown_as_not_ready(tmp_path: Path) -> None:
    answers = [True]

    def ready() -> dict[str, str]:
        if not answers[0]:
            raise NotReady("no answer")
        return {}

    async def body(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.is_ready)
        answers[0] = False
        await until(lambda: supervisor.records["one"].state == "not ready")
        assert supervisor.status()[0]["last_error"] == "no answer"

    supervised(tmp_path, [Process("one", lambda: Start(["sleep", "600"]), ready, check_every_sec=0.02)], body)


def test_a_process_that_no_waiting_mends_is_killed_and_started_anew(tmp_path: Path) -> None:
    file = tmp_path / "broken"

    def ready() -> dict[str, str]:
        if file.exists():
            file.unlink()
            raise Broken("half of it is dead")
        return {}

    process = Process("a", lambda: Start([sys.executable, "-c", SLEEPER]), ready, check_every_sec=0.05)

    async def body(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.is_ready)
        first = supervisor.records["a"].pid
        file.touch()
        await until(lambda: supervisor.records["a"].restarts == 1 and supervisor.is_ready)
        assert supervisor.records["a"].pid != first
        assert supervisor.records["a"].last_error == "restarted: half of it is dead"

    supervised(tmp_path, [process], body)


def test_a_held_process_ends_in_order_and_runs_again_when_released(tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.is_ready)
        await supervisor.hold("a")
        await until(lambda: supervisor.records["a"].state == "held")
        assert supervisor.is_ready
        assert (supervisor.records["a"].pid, supervisor.records["a"].restarts) == (None, 0)
        supervisor.release("a")
        await until(lambda: supervisor.records["a"].state == "ready")

    supervised(tmp_path, [python("a", SLEEPER)], body)


def test_stop_ends_dependants_first_and_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    note = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (print('end', time.time(), flush=True), sys.exit()))\n"
    noting = note + "print('up', flush=True)\ntime.sleep(600)"

    async def body(supervisor: Supervisor) -> None:
        await until(
            lambda: all(
                (tmp_path / f"{name}.log").exists() and "up" in (tmp_path / f"{name}.log").read_text()
                for name in "abc"
            )
        )

    supervised(
        tmp_path,
        [python("a", noting), python("b", noting, "a"), python("c", stubborn, "b", grace_sec=0.2)],
        body,
    )
    ended = {name: float((tmp_path / f"{name}.log").read_text().split()[-1]) for name in "ab"}
    assert ended["b"] < ended["a"]


def test_what_a_process_had_started_dies_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    )

    async def body(supervisor: Supervisor) -> None:
        await until(
            lambda: (tmp_path / "one.log").exists() and (tmp_path / "one.log").read_text().endswith("\n")
        )

    supervised(tmp_path, [python("one", code)], body)
    assert_gone(int((tmp_path / "one.log").read_text()))


def test_children_die_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    code = f"""
import asyncio
from pathlib import Path
from compose.embedded.process import Process, Start
from compose.embedded.supervisor import Supervisor
async def main():
    supervisor = Supervisor([Process("one", lambda: Start(["sleep", "600"]), lambda: {{}})], Path({str(tmp_path)!r}), print)
    supervisor.start()
    while not supervisor.is_ready:
        await asyncio.sleep(0.01)
    print(supervisor.records["one"].pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        parent.kill()
    assert_gone(child)


def assert_gone(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_SEC
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} outlived its supervisor"
        time.sleep(0.01)


def test_a_log_is_rotated_at_its_limit_while_the_process_writes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "LOG_LIMIT_BYTES", 10_000)
    log = tmp_path / "one.log"

    async def body(_: Supervisor) -> None:
        await until(lambda: log.with_suffix(".log.1").exists())
        await until(lambda: 0 < log.stat().st_size < 100_000)

    supervised(
        tmp_path,
        [python("one", "import time\nwhile True: print('x' * 99, flush=True); time.sleep(0.001)")],
        body,
    )
    assert log.read_bytes()[:1] == b"x"


def test_a_process_that_is_held_while_it_is_being_started_does_not_start(tmp_path: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def start() -> Start:
        asked.set()
        assert go_on.wait(DEADLINE_SEC)
        return Start([sys.executable, "-c", SLEEPER])

    async def body(supervisor: Supervisor) -> None:
        record = supervisor.records["one"]
        await until(asked.is_set)
        holding = asyncio.create_task(supervisor.hold("one"))
        await asyncio.sleep(0)  # it has said so, and waits for the start that is under way
        go_on.set()
        await holding
        await until(lambda: record.state == "held")
        assert record.pid is None
        supervisor.release("one")
        await until(lambda: record.state == "ready")

    supervised(tmp_path, [Process("one", start, lambda: {}, check_every_sec=0.05)], body)
