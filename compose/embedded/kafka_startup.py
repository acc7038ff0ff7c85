"""A cache of loaded and linked classes (JEP 483 and 514) that halves the broker's start, in time and in CPU.

It is made once, when the jars are there, from a broker that starts, serves a round trip and stops; the JVM ignores it when it does not fit.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from compose.embedded import parts
from compose.embedded.kafka import JAVA_OPTIONS, STARTUP_CACHE, Kafka, KafkaProbe
from compose.embedded.ports import HOST, free_ports
from compose.embedded.process import NotReady

TIMEOUT_SEC = 60.0


def make(say: Callable[[str], None]) -> None:
    """Write the cache beside the jars, whole or not at all. Without it the broker works, and starts slower: said, not raised."""
    cache = parts.path("kafka") / STARTUP_CACHE
    if cache.exists():
        return
    say("Making the broker's start-up cache")
    try:
        _record(cache)
    except (NotReady, OSError, subprocess.TimeoutExpired) as error:
        say(f"  not made ({error}); the broker will start slower")


def _record(cache: Path) -> None:
    port, controller_port = free_ports(2)
    temporary = cache.with_suffix(".tmp")
    with tempfile.TemporaryDirectory(prefix="tidemill-kafka-") as folder:
        kafka = Kafka(
            HOST, port, controller_port, Path(folder), (*JAVA_OPTIONS, f"-XX:AOTCacheOutput={temporary}")
        )
        with (Path(folder) / "log.txt").open("wb") as log:
            broker = subprocess.Popen(kafka.start().argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait_ready(KafkaProbe(f"{HOST}:{port}"))
            broker.send_signal(signal.SIGTERM)
            broker.wait(TIMEOUT_SEC)  # the JVM writes the cache on its way out
        finally:
            broker.kill()
            broker.wait()
    temporary.rename(cache)


def _wait_ready(probe: KafkaProbe) -> None:
    deadline = time.monotonic() + TIMEOUT_SEC
    while True:
        try:
            probe()
        except NotReady:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return
