"""The labels' process: `python -m streams labels`."""

from __future__ import annotations

import gc
from contextlib import ExitStack

from runtime.service import Health, Stop, run
from runtime.settings import Settings
from runtime.stalls import StallDetector, StallGuard
from runtime.topics import existing_topics
from schemas.errors import UserError
from schemas.spec import load_specs
from schemas.topics import FEEDBACK, FEEDBACK_REDRIVES, OBSERVATIONS, OUTCOMES
from streams.clickhouse import connected
from streams.labels.loop import NAME, Labels
from streams.labels.progress import SinkProgress


def main() -> int:
    """Entry point; the exit code."""
    return run(NAME, serve)


def serve(settings: Settings, health: Health, stop: Stop) -> None:
    """Join until `stop` is set."""
    # A batch makes some hundred thousand objects, none in a cycle: by default they would be looked through again and again while it grows.
    gc.set_threshold(100_000, 50, 50)
    client = connected(settings, health, stop)
    if client is None:
        return
    with ExitStack() as closing:
        closing.callback(client.close)
        specs = {
            topic.for_model(name): spec
            for name, spec in load_specs(settings.models_dir).items()
            for topic in (FEEDBACK, FEEDBACK_REDRIVES)
        }
        if not specs:
            raise UserError(f"{settings.models_dir}: expected at least one model folder")
        ids = existing_topics(settings, specs, health, stop)
        if ids is None:
            return
        guard = StallGuard(StallDetector(settings, NAME))
        guard.start()
        closing.callback(guard.close)
        progress = SinkProgress(settings, (OBSERVATIONS.name, OUTCOMES.name))
        progress.start()
        closing.callback(progress.end)
        labels = Labels(settings, health, client, progress, guard, specs, ids)
        closing.callback(labels.close)
        while not stop.is_set():
            labels.turn()
