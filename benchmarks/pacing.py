"""The paced producer (`benchmarks.pace`) beside a benchmark."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from benchmarks.load import Bodies
from benchmarks.pace import Pace
from benchmarks.stages import Bench, Running


class Pacer(Running):
    """Sends to `topic` at a rate, from its own start on and for `sec`, or until it is ended."""

    def __init__(self, at: Bench, topic: str, pool: Bodies, per_sec: float, sec: float) -> None:
        file = at.folder / "pace.msgpack"
        pace = Pace(topic, per_sec, sec, list(pool.values), list(pool.headers))
        file.write_bytes(msgspec.msgpack.encode(pace))
        command = [sys.executable, "-P", "-m", "benchmarks.pace", str(file)]
        super().__init__("pace", command, at.settings.environment(), at.folder)

    def latest_ms(self) -> float:
        """How late the latest record was, once it has ended."""
        said: dict[str, Any] = msgspec.json.decode(self.log.read_bytes().splitlines()[-1])
        return float(said["latest_ms"])
