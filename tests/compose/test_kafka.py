"""The broker's probe outlives a consumer of its own that has stopped fetching."""

from __future__ import annotations

import pytest

from compose.embedded.kafka import KafkaProbe
from compose.embedded.process import NotReady
from compose.embedded.stack import Stack


class Deaf:
    """A consumer that never fetches."""

    closed = False

    def assign(self, _places: object) -> None:
        pass

    def poll(self, _timeout_sec: float) -> None:
        return None

    def close(self) -> None:
        self.closed = True


def test_a_probe_whose_consumer_reads_nothing_takes_another_one(infrastructure: Stack) -> None:
    probe, deaf = KafkaProbe(infrastructure.settings.kafka_bootstrap), Deaf()
    probe.__dict__["_consumer"] = deaf
    with pytest.raises(NotReady, match="could not be read back"):
        probe()
    assert deaf.closed
    assert probe()["topics"] > 0
