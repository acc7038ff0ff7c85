"""The worker as a service."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any, Final

from runtime.clock import now_ms
from runtime.positions import Place
from runtime.service import CRASHED, FENCED, Health, Stop, run
from runtime.settings import Settings
from runtime.stalls import StallDetector
from runtime.telemetry import gauge
from runtime.topics import existing_topics
from schemas.errors import Fenced
from schemas.topics import PARTIALS
from streams.worker.app import GROUP, TOPICS, Worker
from streams.worker.measure import Measure
from streams.worker.merge import Merge
from streams.worker.models import Models
from streams.worker.state import Processor

log = logging.getLogger(__name__)

LOOK_EVERY_SEC: Final = 1.0
END_SEC: Final = 5.0
"""How long a worker that has failed may take to end."""


def main() -> int:
    """Entry point; the exit code."""
    return run("worker", work)


def work(settings: Settings, health: Health, stop: Stop) -> None:
    """Measure and merge until told to stop.

    Raises:
        Fenced: another worker of the same slot has taken over.
        Stalled: there is something to read and Faust does not read it: a restart helps.
    """
    for name in ("faust", "mode", "aiokafka"):
        # They log each rebalance, assignment and start of a service in many lines.
        logging.getLogger(name).setLevel(logging.WARNING)
    # Faust ends with an error if nobody listens.
    if existing_topics(settings, TOPICS, health, stop) is None:
        return
    asyncio.run(_serve(settings, health, stop))


async def _serve(settings: Settings, health: Health, stop: Stop) -> None:
    models = Models(settings)

    def make(topic: str, partition: int) -> Processor:
        if topic == PARTIALS.name:
            return Merge(models, now_ms, partition)
        return Measure(models, topic, partition)

    worker = Worker(settings, make, stop)
    detector = StallDetector(settings, GROUP)
    try:
        await worker.start()
        await _watch(worker, detector, health, stop)
    except Exception as error:
        _end_soon(error)
        raise
    finally:
        health.set_ready(False)
        await worker.close()
        detector.close()


def _end_soon(error: Exception) -> None:
    """Faust waits a minute, or for ever, for threads of its own that a failure has left hanging, and meanwhile nobody has the partitions.

    Nothing is lost by an end without farewell: what is not saved is read again.
    """
    log.warning("ending: %s", error)
    code = FENCED if isinstance(error, Fenced) else CRASHED
    timer = threading.Timer(END_SEC, os._exit, (code,))
    timer.daemon = True
    timer.start()


async def _watch(worker: Worker, detector: StallDetector, health: Health, stop: Stop) -> None:
    """Report and look after the worker until it is told to stop or fails."""
    shown: set[Place] = set()
    while not stop.is_set():
        crash = worker.crashed
        if crash is not None:
            raise crash
        positions = {
            place: worker.sources[place].next_offset if place in worker.sources else None
            for place in worker.assigned
        }
        stages = await asyncio.to_thread(detector.look, positions)
        for place, stage in stages.items():
            health.stage(_stage_name(place), stage)
            gauge("tidemill_lag_records").labels(
                _stage_name(place).partition(" ")[0], f"{place[0]}-{place[1]}"
            ).set(stage.lag_records)
        for place in shown - set(positions):
            health.drop_stage(_stage_name(place))
        shown = set(positions)
        health.detail(
            late_rows=sum(
                source.processor.late_rows
                for source in worker.sources.values()
                if isinstance(source.processor, Merge)
            )
        )
        if positions:
            health.set_ready()
        # Either the worker fails, and this raises, or it is time to look again.
        waiting: asyncio.Future[Any] = asyncio.ensure_future(asyncio.to_thread(stop.wait, LOOK_EVERY_SEC))
        await asyncio.wait([waiting, worker.failed], return_when=asyncio.FIRST_COMPLETED)
        if worker.failed.done():
            worker.failed.result()


def _stage_name(place: Place) -> str:
    topic, partition = place
    return f"{'merge' if topic == PARTIALS.name else 'measure'} {topic}-{partition}"
