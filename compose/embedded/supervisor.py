"""Keeps the processes of a stack alive: order, readiness, restarts with back-off, and an end that ends everything.

All children are started from the main thread with PR_SET_PDEATHSIG, so that they die with the supervisor even when it is killed (the
kernel ties that signal to the parent's *thread*), each in a process group of its own, so that what a child started dies with the child.
A child writes its log file itself: a slow supervisor cannot hold it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from compose.embedded.process import (
    Broken,
    NotReady,
    Process,
    Start,
    dying_with_parent,
    kill_group,
    last_error,
    levels,
    next_backoff,
)
from schemas.errors import UserError

LOG_LIMIT_BYTES = 16 << 20
POLL_START_SEC = 0.1


@dataclass
class Record:
    """What is known of one process; the fields are those of `status`."""

    name: str
    state: str = "waiting"
    """waiting (for others), starting, ready, not ready, restarting (dead, in back-off), held (not to run), done (a step that ends),

    failed, stopped."""
    pid: int | None = None
    restarts: int = 0
    started_at: float | None = None
    ready_after_sec: float | None = None
    exit_code: int | None = None
    last_error: str = ""
    """Why it last died or could not start."""
    complaint: str = ""
    """What its check finds wrong at this moment."""
    broken: str = ""
    """Why its check had it killed."""
    detail: Mapping[str, Any] = field(default_factory=dict)


class Supervisor:
    """Runs `processes` until `stop`. Everything but the checks happens in the event loop of the main thread."""

    def __init__(
        self,
        processes: Sequence[Process],
        logs_dir: Path,
        on_failure: Callable[[str], None],
        held: Sequence[str] = (),
    ) -> None:
        self._levels = levels(processes)
        self._processes = {process.name: process for process in processes}
        self._released = {process.name: asyncio.Event() for process in processes}
        for process in processes:
            if process.name not in held:
                self._released[process.name].set()
        self._logs_dir = logs_dir
        self._on_failure = on_failure
        self._names = {process.name for process in processes}
        self.records = {process.name: Record(process.name) for process in processes}
        self._ready = {process.name: asyncio.Event() for process in processes}
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._starting = {process.name: asyncio.Lock() for process in processes}
        """Held while a process is being started and is no child yet, which nobody could end."""
        self._stopping = False
        self._threads = ThreadPoolExecutor(max_workers=max(4, 2 * len(processes)), thread_name_prefix="check")

    @property
    def is_ready(self) -> bool:
        return all(record.state in ("ready", "done", "held") for record in self.records.values())

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    def start(self) -> None:
        for process in (process for level in self._levels for process in level):
            task = asyncio.create_task(self._keep(process), name=process.name)
            task.add_done_callback(self._notice_defect)
            self._tasks[process.name] = task

    async def hold(self, name: str) -> None:
        """End a process in order, as at the end of the stack, and start it no more until `release`."""
        self._released[name].clear()
        async with self._starting[name]:
            pass  # it has not been started, or is a child now
        await self._terminate(self._processes[name])

    def release(self, name: str) -> None:
        """Let a process run (again)."""
        self._released[name].set()

    def _notice_defect(self, task: asyncio.Task[None]) -> None:
        """A task that ends with an error of ours must not leave its process unattended in silence."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(f"{task.get_name()}: {type(error).__name__}: {error}")

    async def stop(self) -> None:
        """SIGTERM in the reverse order of the start, SIGKILL to the group of what outlives its grace period."""
        self._stopping = True
        for level in reversed(self._levels):
            await asyncio.gather(*(self._end(process) for process in level))
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _end(self, process: Process) -> None:
        task = self._tasks.get(process.name)
        if not await self._terminate(process) and task is not None:
            task.cancel()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)
        if self.records[process.name].state != "done":
            self.records[process.name].state = "stopped"

    async def _terminate(self, process: Process) -> bool:
        """SIGTERM, and SIGKILL to the group of what outlives its grace period; False if the process does not run."""
        child = self._children.get(process.name)
        if child is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), process.grace_sec)
        except TimeoutError:
            kill_group(child.pid)
        return True

    async def _keep(self, process: Process) -> None:
        record = self.records[process.name]
        for name in process.after:
            if name in self._names:
                await self._ready[name].wait()
        backoff_sec = 0.0
        while True:
            if not self._released[process.name].is_set():
                record.state, backoff_sec = "held", 0.0
                await self._released[process.name].wait()
            started = time.monotonic()
            code = await self._run_once(process, record)
            if self.is_stopping:
                return
            if not self._released[process.name].is_set():
                continue
            if process.once and code == 0:
                record.state = "done"
                self._ready[process.name].set()
                return
            if process.once:
                record.state = "failed"
                self._on_failure(f"{process.name} failed: {record.last_error}")
                return
            record.state = "restarting"
            backoff_sec = next_backoff(backoff_sec, time.monotonic() - started)
            await asyncio.sleep(backoff_sec)
            record.restarts += 1

    async def _run_once(self, process: Process, record: Record) -> int:
        """One life of a process: start, watch, wait for its end. Returns its exit code, negative for a signal, 127 if it cannot start."""
        record.state, record.started_at, record.ready_after_sec, record.detail = (
            "starting",
            time.time(),
            None,
            {},
        )
        log_file = self._logs_dir / f"{process.name}.log"
        with log_file.open("ab") as log:
            log_start = log.tell()
            try:
                async with self._starting[process.name]:
                    start = await self._in_thread(process.start)
                    if self.is_stopping or not self._released[process.name].is_set():
                        return 0
                    child = await self._spawn(start, log)
                    self._children[process.name] = child
            except (NotReady, UserError, OSError) as error:
                record.last_error = str(error)
                return 127
        record.pid = child.pid
        watch = asyncio.create_task(self._watch(process, record, log_file, child.pid))
        try:
            code = await child.wait()
        finally:
            watch.cancel()
            kill_group(child.pid)  # what the child itself had started
            del self._children[process.name]
            record.pid = None
        record.exit_code, record.complaint = code, ""
        if code and not self._stopping:
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            why = (
                _tail(log_file, log_start) if code > 0 else ""
            )  # who kills a process leaves no word in its log
            record.last_error = f"{how}; {why}" if why else how
            if record.broken:
                record.last_error, record.broken = f"restarted: {record.broken}", ""
        return code

    async def _spawn(self, start: Start, log: IO[bytes]) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *start.argv,
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, **start.environment},
            start_new_session=True, preexec_fn=dying_with_parent(),
        )  # fmt: skip

    async def _watch(self, process: Process, record: Record, log_file: Path, pid: int) -> None:
        """Checks until the child ends: often until it is ready, then now and then, since a live process can still be a stuck one."""
        started = time.monotonic()
        while process.ready is not None:
            try:
                record.detail = await self._in_thread(process.ready)
            except (NotReady, OSError, ValueError) as error:
                if isinstance(error, NotReady):
                    record.complaint, record.detail = str(error), error.detail or record.detail
                if record.ready_after_sec is not None:
                    record.state, record.complaint = "not ready", str(error)
                if isinstance(error, Broken):
                    record.broken = str(error)
                    kill_group(pid)
                    return
            else:
                record.state, record.complaint = "ready", ""
                if record.ready_after_sec is None:
                    record.ready_after_sec = time.monotonic() - started
                self._ready[process.name].set()
            _rotate(log_file)
            await asyncio.sleep(POLL_START_SEC if record.ready_after_sec is None else process.check_every_sec)

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def status(self) -> list[dict[str, Any]]:
        """One row a process; times in seconds."""
        now = time.time()
        return [
            {
                "process": record.name,
                "state": record.state,
                "pid": record.pid,
                "restarts": record.restarts,
                "uptime_sec": round(now - record.started_at, 1) if record.pid and record.started_at else None,
                "ready_after_sec": None
                if record.ready_after_sec is None
                else round(record.ready_after_sec, 2),
                "exit_code": record.exit_code,
                "last_error": record.complaint or record.last_error or record.detail.get("last_error") or "",
                "detail": dict(record.detail),
            }
            for record in self.records.values()
        ]


def _tail(log_file: Path, start: int) -> str:
    """The telling line of what was logged since offset `start` (all of it, if the log was rotated meanwhile)."""
    with log_file.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(start if start <= size else 0, size - (64 << 10)))
        return last_error(log.read().decode(errors="replace"))


def _rotate(log_file: Path) -> None:
    """Copy and truncate: the child keeps its descriptor (opened to append), so a renamed file would go on growing."""
    if log_file.stat().st_size > LOG_LIMIT_BYTES:
        shutil.copyfile(log_file, log_file.with_suffix(".log.1"))
        os.truncate(log_file, 0)


def write_json(file: Path, value: Any) -> None:
    """Whole or not at all."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.rename(file)
