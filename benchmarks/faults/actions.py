"""What each kind of fault does, and the thread that does it when its time has come."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final

from benchmarks.faults.load import Load
from benchmarks.faults.monitor import Monitor
from benchmarks.faults.proxy import Mode
from benchmarks.faults.recreate import recreate
from benchmarks.faults.schedule import LINKS, LONE, Fault, process_of
from benchmarks.faults.world import World

ACTIVE_AT_ONCE: Final = 3
UNRECOVERED_AT_ONCE: Final = 6
"""Active or not recovered from: with more, what is measured is no longer a recovery but a machine that is asked too much."""
PATIENCE_SEC: Final = 60.0
"""For so long a fault waits for recoveries: one that never comes shall not end the faults."""


@dataclass
class Event:
    """A fault as it happened; times in seconds since the load began."""

    fault: Fault
    began_sec: float
    ended_sec: float | None = None
    recovered_sec: float | None = None
    """When the stages that it hit had committed all that was there at its end."""
    failure: str = ""
    """Why it could not be done."""
    met: int | None = None
    """How much traffic a broken link met; None if it is no link."""


Action = Callable[[World, Load, Fault], AbstractContextManager[int | None]]
"""Yields the pid of the process that it ended, if it ended one."""


@contextmanager
def _signalled(world: World, _load: Load, fault: Fault) -> Iterator[int | None]:
    """An instant: the process gets its signal and the supervisor starts the next."""
    number = signal.SIGKILL if fault.kind in ("kill", "kill_server") else signal.SIGTERM
    yield world.signal(fault.target, number)


@contextmanager
def _stopped(world: World, _load: Load, fault: Fault) -> Iterator[int | None]:
    pid = world.signal(fault.target, signal.SIGSTOP)
    try:
        yield None
    finally:
        world.resume(pid)


@contextmanager
def _broken(world: World, _load: Load, fault: Fault) -> Iterator[int | None]:
    world.links.set(fault.target, MODES[fault.kind])
    try:
        yield None
    finally:
        world.links.set(fault.target, Mode.OPEN)


@contextmanager
def _scaled_in(world: World, _load: Load, fault: Fault) -> Iterator[int | None]:
    world.hold(fault.target)
    try:
        yield None
    finally:
        world.release(fault.target)


@contextmanager
def _scaled_out(world: World, _load: Load, fault: Fault) -> Iterator[int | None]:
    world.release(fault.target)
    try:
        yield None
    finally:
        world.hold(fault.target)


@contextmanager
def _recreated(world: World, load: Load, _fault: Fault) -> Iterator[int | None]:
    recreate(world, load)
    yield None


MODES: Final[Mapping[str, Mode]] = {
    "cut": Mode.CUT,
    "stall": Mode.STALL,
    "stall_past_session": Mode.STALL,
    "delay": Mode.DELAY,
    "lose_answers": Mode.DEAF,
    "disk_full": Mode.DISK_FULL,
    "too_many_parts": Mode.TOO_MANY_PARTS,
}
SIGNALLED: Final = ("kill", "kill_server", "restart", "terminate")
"""What ends a process, which the supervisor starts again."""
ACTIONS: Final[Mapping[str, Action]] = {
    **dict.fromkeys(SIGNALLED, _signalled),
    "stop": _stopped,
    "stop_past_session": _stopped,
    "stop_past_insert": _stopped,
    **dict.fromkeys(MODES, _broken),
    "scale_in": _scaled_in,
    "scale_out": _scaled_out,
    "recreate": _recreated,
}


class Executor:
    """Carries a schedule out: each fault in a thread of its own, few at once, one a target, few not recovered from, and a recreation alone."""

    def __init__(
        self, world: World, load: Load, monitor: Monitor, began: float, enough: threading.Event
    ) -> None:
        """After `enough` no fault begins any more."""
        self.events: list[Event] = []
        self._world, self._load, self._monitor = world, load, monitor
        self._began, self._enough = began, enough
        self._busy: set[str] = set()
        self._free = threading.Condition()
        self._threads: list[threading.Thread] = []

    def run(self, faults: list[Fault], on_fault: Callable[[Event], None]) -> None:
        """Return when all faults are over that were begun. `on_fault` hears of each as it begins.

        One that has to wait for others delays those after it as much: they are drawn some time apart, and caught up with they would come
        at once, several for each that the seed says.
        """
        late_sec = 0.0
        for fault in faults:
            while (early := self._began + late_sec + fault.begin_sec - time.monotonic()) > 0:
                if self._enough.wait(min(early, 0.2)):
                    break
                self._load.check()
            with self._free:
                waited_since = time.monotonic()
                while not (self._enough.is_set() or self._may_begin(fault, time.monotonic() - waited_since)):
                    self._free.wait(0.2)
                    self._load.check()
                if self._enough.is_set():
                    break
                self._busy.add(process_of(fault.target))
                event = Event(fault, time.monotonic() - self._began)
                self.events.append(event)
            late_sec = event.began_sec - fault.begin_sec
            on_fault(event)
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=self._carry_out, args=(event,), name=str(fault), daemon=True)
            self._threads.append(thread)
            thread.start()
        for thread in self._threads:
            thread.join()

    @property
    def active(self) -> int:
        """Faults under way."""
        return len(self._busy)

    def _may_begin(self, fault: Fault, waited_sec: float) -> bool:
        if fault.kind == "recreate":
            return not self._busy
        if any(place == "requests" for place in self._busy):
            return False
        if len(self._busy) >= ACTIVE_AT_ONCE or process_of(fault.target) in self._busy:
            return False
        unrecovered = len(self._busy) + len(self._monitor.unrecovered)
        return unrecovered < UNRECOVERED_AT_ONCE or waited_sec > PATIENCE_SEC

    def _carry_out(self, event: Event) -> None:
        fault = event.fault
        ended_pid = None
        links = self._world.links
        met_before = links.met(fault.target) if fault.target in LINKS else None
        try:
            with ACTIONS[fault.kind](self._world, self._load, fault) as ended_pid:
                time.sleep(fault.duration_sec)
        except Exception as error:  # noqa: BLE001  a fault that could not be done is told in the report, which then fails
            event.failure = f"{type(error).__name__}: {error}"
        finally:
            event.ended_sec = time.monotonic() - self._began
            if met_before is not None:
                event.met = links.met(fault.target) - met_before
            self._monitor.ended(fault.number, affected(fault), lone(fault), ended_pid)
            with self._free:
                self._busy.discard(process_of(fault.target))
                self._free.notify_all()


STAGES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "gateway": ("gateway",),
    "sink": ("sink",),
    "labels": ("labels",),
    "worker": ("worker",),
    "triton": ("gateway",),
    "stub": ("gateway",),
    "clickhouse": ("sink", "labels"),
    "kafka": ("gateway", "sink", "labels", "worker"),
    "requests": ("gateway",),
    "control": ("control",),
    "training": (),
    "majors": (),
}


def affected(fault: Fault) -> tuple[str, ...]:
    """Stages whose progress shows the recovery; none if nothing flows through the part all the time (training)."""
    return STAGES_OF[_part(fault)]


def lone(fault: Fault) -> str:
    """The process that has to be ready again, where there is only one of its kind; "" if there are more, or it is a server."""
    part = _part(fault)
    return part if part in LONE else ""


def _part(fault: Fault) -> str:
    """The key of `STAGES_OF` that a target belongs to."""
    if fault.target in LINKS:
        return fault.target.partition("-")[0]
    return fault.target if fault.target in STAGES_OF else fault.target.rpartition("-")[0]
