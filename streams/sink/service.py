"""The sink's process: `python -m streams sink`."""

from __future__ import annotations

from contextlib import ExitStack

from runtime.service import Health, Stop, run
from runtime.settings import Settings
from schemas.spec import load_specs
from streams.clickhouse import connected
from streams.sink.loop import GROUP, Sink


def serve(settings: Settings, health: Health, stop: Stop) -> None:
    """Run the sink until told to stop."""
    specs = load_specs(settings.models_dir)
    client = connected(settings, health, stop)
    if client is None:
        return
    with ExitStack() as closing:
        closing.callback(client.close)
        sink = Sink(settings, health, client, specs)
        closing.callback(sink.close)
        while not stop.is_set():
            sink.step()


def main() -> int:
    """Entry point; returns the exit code."""
    return run(GROUP, serve)
