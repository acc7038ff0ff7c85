"""`tidemill bench startup`: from nothing to ready, from data that is there to ready, and from a gateway's start to its first answer."""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.deploy import deploy
from benchmarks.load import bodies, produce_backlog, request_topic
from benchmarks.meter import LOOK_EVERY_SEC, Committed, StageFailed
from benchmarks.options import JSON, TURNS, quick_is, seed_of
from benchmarks.report import Line, Result, median, progress, show
from benchmarks.stages import Service, bench, running
from compose.embedded.stack import Stack
from inference.source import GROUP
from schemas.spec import load_spec

MODEL: Final = "floats_8"
LIMIT_SEC: Final = 60.0


@click.command()
@TURNS
@seed_of()
@quick_is("One turn")
@JSON
def command(turns: int, seed: int, quick: bool, as_json: bool) -> None:
    """Time until the stack is ready, and until a gateway answers."""
    show(measure(1 if quick else turns, seed)._replace(quick=quick), as_json)


def measure(turns: int, seed: int) -> Result:
    """Everything in turns."""
    fresh: list[float] = []
    again: list[float] = []
    ended: list[float] = []
    for turn in range(turns):
        with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as name:
            for kind, values in (("an empty folder", fresh), ("data that is there", again)):
                progress(f"turn {turn + 1} of {turns}: the stack on {kind}")
                started = time.monotonic()
                with Stack(Path(name) / "data"):
                    values.append(time.monotonic() - started)
                    leaving = time.monotonic()
                ended.append(time.monotonic() - leaving)
    ready, first = _gateway(turns, seed)
    figures: dict[str, Any] = {
        "stack_ready_fresh_sec": median(fresh), "stack_ready_again_sec": median(again), "stack_end_sec": median(ended),
        "gateway_ready_sec": median(ready), "gateway_first_answer_sec": median(first),
    }  # fmt: skip
    lines = [
        Line("the stack, on an empty folder", fresh, "s"), Line("the stack, on data that is there", again, "s"),
        Line("the stack's end", ended, "s"), Line("a gateway until ready", ready, "s"),
        Line("a gateway until its first answer", first, "s"),
    ]  # fmt: skip
    return Result("startup", figures, lines, seed, turns)


def _gateway(turns: int, seed: int) -> tuple[list[float], list[float]]:
    ready, first = [], []
    with bench([MODEL]) as at:
        spec = load_spec(at.settings.models_dir / MODEL)
        deploy(at.settings, MODEL, seed=seed)
        for turn in range(turns):
            progress(f"turn {turn + 1} of {turns}: a gateway")
            backlog = produce_backlog(at.settings, request_topic(MODEL), bodies(spec, "json", seed), 1)
            ready_sec: float | None = None
            answer_sec: float | None = None
            with closing(Committed(at.settings, GROUP, backlog)) as committed:
                started = time.monotonic()
                gateway = Service(at, "gateway")
                with running(gateway):
                    while ready_sec is None or answer_sec is None:
                        if answer_sec is None and committed():
                            answer_sec = time.monotonic() - started
                        if ready_sec is None and gateway.health().get("ready"):
                            ready_sec = time.monotonic() - started
                        gateway.check()
                        if time.monotonic() - started > LIMIT_SEC:
                            raise StageFailed(
                                f"the gateway is {'' if ready_sec else 'not '}ready and has {'' if answer_sec else 'not '}answered "
                                f"after {LIMIT_SEC:.0f} s"
                            )
                        time.sleep(LOOK_EVERY_SEC)
            ready.append(ready_sec)
            first.append(answer_sec)
    return ready, first
