"""The watchdog tells a worker that stands still from one that has nothing to do."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from compose.embedded.stack import Stack
from runtime.kafka import admin, create_topics
from runtime.settings import Settings
from schemas.topics import OBSERVATIONS
from streams.worker.watchdog import STALLED_AFTER_SEC, Stalled, Watchdog
from tests.streams.worker.batches import EPOCH_MS, features, observations, spec_of
from tests.streams.worker.worker import Source


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def topic(infrastructure: Stack) -> str:
    name = f"watched-{uuid.uuid4()}"
    create_topics(admin(infrastructure.settings), [(name, OBSERVATIONS, 1)])
    return name


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watchdog(infrastructure: Stack, clock: Clock) -> Iterator[Watchdog]:
    made = Watchdog(infrastructure.settings, f"watched-{uuid.uuid4()}", clock)
    yield made
    made.close()


def batch() -> pa.RecordBatch:
    rows = features(np.random.default_rng(0), 2)
    return observations(spec_of(), rows, first_offset=0, at_ms=np.array([EPOCH_MS, EPOCH_MS]))


def write(settings: Settings, topic: str, *, aborted: bool = False) -> None:
    source = Source(settings)
    (source.abort if aborted else source.commit)(topic, [batch()])


def test_trailing_markers_and_aborted_records_are_nothing_to_do(
    infrastructure: Stack, topic: str, watchdog: Watchdog, clock: Clock
) -> None:
    write(infrastructure.settings, topic)
    write(infrastructure.settings, topic, aborted=True)
    place = (topic, 0)
    for _ in range(5):
        (stage,) = watchdog.look({place: 1}).values()
        assert (stage.lag_records, stage.oldest_age_sec) == (0, 0)
        clock.now += STALLED_AFTER_SEC


def test_a_record_that_is_not_read_for_long_is_a_stall(
    infrastructure: Stack, topic: str, watchdog: Watchdog, clock: Clock
) -> None:
    write(infrastructure.settings, topic)
    place = (topic, 0)
    watchdog.look({place: 1})
    clock.now += 10 * STALLED_AFTER_SEC
    write(infrastructure.settings, topic)
    # However long it was idle before: the record has just come. (The commit's marker is written behind its answer.)
    deadline = time.monotonic() + 10
    while not watchdog.look({place: 1})[place].lag_records:
        assert time.monotonic() < deadline
    clock.now += STALLED_AFTER_SEC - 1
    assert watchdog.look({place: 1})[place].oldest_age_sec == STALLED_AFTER_SEC - 1
    clock.now += 2
    with pytest.raises(Stalled, match=topic):
        watchdog.look({place: 1})


def test_a_worker_that_moves_is_not_stalled(
    infrastructure: Stack, topic: str, watchdog: Watchdog, clock: Clock
) -> None:
    place = (topic, 0)
    for _ in range(4):
        write(infrastructure.settings, topic)
    for position in (0, 2, 4, 6):
        clock.now += STALLED_AFTER_SEC - 1
        assert watchdog.look({place: position})[place].lag_records > 0


def test_a_partition_that_was_never_read_begins_at_its_start(
    infrastructure: Stack, topic: str, watchdog: Watchdog, clock: Clock
) -> None:
    write(infrastructure.settings, topic)
    assert watchdog.look({(topic, 0): None})[topic, 0].lag_records == 2
    clock.now += STALLED_AFTER_SEC + 1
    with pytest.raises(Stalled):
        watchdog.look({(topic, 0): None})


def test_without_a_broker_nobody_is_blamed(clock: Clock) -> None:
    watchdog = Watchdog(Settings(kafka_bootstrap="127.0.0.1:1"), "nobody", clock)
    assert watchdog.look({("observations", 0): 5}) == {}
    watchdog.close()
