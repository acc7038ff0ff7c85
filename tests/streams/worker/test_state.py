"""A source partition's saves on a real broker: fenced, lost before or after the commit, taken up by a successor."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from faust.types import TP

from compose.embedded.stack import Stack
from runtime.kafka import admin, create_topics
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer, TransactionLost
from schemas.errors import Fenced, TidemillError
from schemas.topics import OBSERVATIONS, ROUTES
from streams.worker.app import Worker
from streams.worker.state import Drained, Record, Save, SourcePartition
from tests.reader import Reader


class Told:
    """A consumer that remembers what its group was told."""

    def __init__(self) -> None:
        self.offsets: dict[tuple[str, int], int] = {}

    async def _commit(self, offsets: dict[TP, int]) -> bool:
        self.offsets |= {(place.topic, place.partition): offset for place, offset in offsets.items()}
        return True


class Adder:
    """Adds numbers up; each save writes one output, the sum so far, and keeps every number as an entry."""

    def __init__(self, name: str, output: str) -> None:
        self.name, self.output = name, output
        self.sum = 0
        self.restored: dict[str, bytes] = {}
        self._entries: dict[str, bytes | None] = {}

    def restore(self, own: bytes, entries: dict[str, bytes]) -> None:
        self.sum, self.restored = int(own), entries

    def apply(self, value: bytes) -> None:
        self.sum += int(value)
        self._entries[value.decode()] = b"seen"

    @property
    def size(self) -> int:
        return len(self._entries)

    def drain(self, next_offset: int) -> Drained:
        entries, self._entries = self._entries, {}
        return Drained([Record(self.output, b"sum", str(self.sum).encode())], str(self.sum).encode(), entries)


class Place:
    """One source partition of a processor of its own, and everything that became visible of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = f"adder-{uuid.uuid4()}"
        create_topics(
            admin(settings),
            [(self.name, msgspec.structs.replace(ROUTES, name=self.name, compacted=False), 1)],
        )
        self.reader = Reader(settings, self.name)
        self._owners: list[SourcePartition] = []

    def owner(self) -> tuple[SourcePartition, Adder]:
        """A worker that has just been given the partition."""
        adder = Adder(self.name, self.name)
        partition = SourcePartition(self.settings, adder, "source", 0, threading.Event())
        self._owners.append(partition)
        partition.open()
        return partition, adder

    def outputs(self, count: int) -> list[bytes | None]:
        return [message.value() for message in self.reader.until(count)]

    def close(self) -> None:
        for owner in self._owners:
            owner.close()
        self.reader.close()


@pytest.fixture
def place(infrastructure: Stack) -> Iterator[Place]:
    made = Place(infrastructure.settings)
    yield made
    made.close()


def save(partition: SourcePartition) -> None:
    due = partition.drain()
    assert due is not None
    partition.write(due)


def lose_once(monkeypatch: pytest.MonkeyPatch, how: Callable[[TransactionalProducer], object]) -> list[str]:
    """The next commit ends `how`, and then nobody knows: TransactionLost. Returns what was lost, so far."""
    commit, lost = TransactionalProducer.commit, list[str]()

    def ambiguous(producer: TransactionalProducer) -> None:
        if lost:
            return commit(producer)
        lost.append("commit")
        how(producer)
        raise TransactionLost("the answer was lost")

    monkeypatch.setattr(TransactionalProducer, "commit", ambiguous)
    return lost


def test_a_successor_goes_on_from_the_save_and_skips_what_is_in_it(place: Place) -> None:
    first, _ = place.owner()
    for offset, value in enumerate((b"1", b"2", b"3")):
        first.apply(offset, value)
    save(first)
    assert first.drain() is None
    second, adder = place.owner()
    assert (second.next_offset, adder.sum, adder.restored) == (3, 6, dict.fromkeys("123", b"seen"))
    for offset, value in enumerate((b"1", b"2", b"3", b"4")):
        second.apply(offset, value)
    save(second)
    assert place.outputs(2) == [b"6", b"10"]


def test_an_event_that_was_passed_over_is_told_from_a_marker_and_ends_the_worker(place: Place) -> None:
    topic = f"passed-{uuid.uuid4()}"
    create_topics(admin(place.settings), [(topic, OBSERVATIONS, 1)])
    writer = TransactionalProducer(place.settings, topic)
    try:
        for _ in range(3):
            writer.begin()
            writer.produce(topic, b"an event", partition=0)
            writer.commit()
    finally:
        writer.close()
    # Events lie at 0, 2 and 4, between markers.
    partition = SourcePartition(place.settings, Adder(place.name, place.name), topic, 0, threading.Event())
    found = {}
    for partition.next_offset in (0, 1, 3):
        found[partition.next_offset] = [partition.passes_over(offset) for offset in (0, 2, 4)]
    assert found == {0: [False, True, True], 1: [False, False, True], 3: [False, False, False]}

    told: Any = Told()

    async def handed(offset: int) -> int:
        """To a worker that has just been given the partition: how far it is then."""
        worker = Worker(place.settings, lambda *_: Adder(place.name, place.name), threading.Event())
        worker._app.consumer = told
        worker.assigned.add((topic, 0))
        try:
            await worker._handle((topic, 0), offset, b"1")
            return worker.sources[topic, 0].next_offset
        finally:
            for source in worker.sources.values():
                source.close()
            worker._threads.shutdown()

    assert asyncio.run(handed(0)) == 1
    assert told.offsets == {}
    with pytest.raises(TidemillError, match="handed offset 2 after 0"):
        asyncio.run(handed(2))
    assert told.offsets == {(topic, 0): 0}, "there a new process begins"


def test_a_worker_that_lost_the_partition_is_fenced_and_leaves_no_trace(place: Place) -> None:
    zombie, _ = place.owner()
    zombie.apply(0, b"5")
    successor, adder = place.owner()
    with pytest.raises(Fenced):
        save(zombie)
    assert (adder.sum, zombie.saved_offset) == (0, 0)
    successor.apply(0, b"5")
    save(successor)
    assert place.outputs(1) == [b"5"]
    heir, restored = place.owner()
    assert (heir.next_offset, restored.sum) == (1, 5)


def test_a_worker_that_lost_transaction_and_partition_writes_nothing_upon_its_successors_save(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie, _ = place.owner()
    zombie.apply(0, b"5")
    zombie.apply(1, b"1")
    successor, _ = place.owner()
    successor.apply(0, b"5")
    save(successor)
    # Lost for another reason than its successor: it has a new producer, which nobody has fenced.
    lose_once(monkeypatch, lambda producer: producer._lost("its broker was away"))
    with pytest.raises(Fenced):
        save(zombie)
    assert place.outputs(1) == [b"5"]


def test_a_commit_whose_answer_was_lost_is_not_written_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition, _ = place.owner()
    lost = lose_once(monkeypatch, TransactionalProducer.commit)
    partition.apply(0, b"7")
    save(partition)
    assert (lost, partition.saved_offset) == (["commit"], 1)
    partition.apply(1, b"1")
    save(partition)
    assert place.outputs(2) == [b"7", b"8"]


def test_a_commit_that_did_not_happen_is_written_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    partition, _ = place.owner()
    lost = lose_once(monkeypatch, TransactionalProducer.abort)
    partition.apply(0, b"7")
    save(partition)
    assert (lost, partition.saved_offset) == (["commit"], 1)
    assert place.outputs(1) == [b"7"]
    heir, restored = place.owner()
    assert (heir.next_offset, restored.sum) == (1, 7)


def test_after_a_save_that_failed_nothing_more_is_written(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that slept, and lost its transaction meanwhile, learns that another one has the partition; what else it has to save, as it lets
    go, would put the state back to where it fell asleep, and its successor would count everything since then again."""
    sleeper, _ = place.owner()
    sleeper.apply(0, b"1")
    save(sleeper)
    sleeper.apply(1, b"2")
    late = sleeper.drain()
    assert late is not None
    successor, _ = place.owner()
    for offset, value in ((1, b"2"), (2, b"3")):
        successor.apply(offset, value)
    save(successor)

    def lost(partition: SourcePartition, _: object) -> None:
        assert partition._producer is not None
        raise partition._producer._lost(
            "it slept for too long"
        )  # with a new producer, which fences the successor

    monkeypatch.setattr(SourcePartition, "_transact", lost)
    with pytest.raises(Fenced, match="another worker has saved up to 3"):
        sleeper.write(late)
    monkeypatch.undo()
    sleeper.apply(2, b"3")
    with pytest.raises(Fenced, match="after a save that failed"):
        save(sleeper)
    _, adder = place.owner()
    assert adder.sum == 6
    assert place.outputs(2) == [b"1", b"6"]


def test_events_go_on_while_a_save_is_written_and_a_release_waits_for_both(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, write = threading.Event(), threading.Event(), SourcePartition.write

    def slowly(partition: SourcePartition, save: Save) -> None:
        begun.set()
        assert go_on.wait(30)
        write(partition, save)

    monkeypatch.setattr(SourcePartition, "write", slowly)
    told: Any = Told()

    async def run() -> list[int]:
        worker = Worker(place.settings, lambda *_: Adder(place.name, place.name), threading.Event())
        worker._app.consumer = told
        source = ("source", 0)
        worker.assigned.add(source)
        await worker._handle(source, 0, b"1")
        saving = asyncio.create_task(worker._save(source))
        await asyncio.to_thread(begun.wait)
        await asyncio.wait_for(worker._handle(source, 1, b"2"), 30)
        progress = [worker.sources[source].next_offset, worker.sources[source].saved_offset]
        # A rebalance takes the partition away in the middle of it, and the timer asks for a save of its own.
        releasing = asyncio.create_task(worker._release({source}))
        by_timer = asyncio.create_task(worker._save(source))
        await asyncio.sleep(0)
        assert not releasing.done()
        go_on.set()
        await asyncio.gather(saving, releasing, by_timer)
        assert worker.sources == {}
        worker._threads.shutdown()
        return progress

    assert asyncio.run(run()) == [2, 0]
    assert place.outputs(2) == [b"1", b"3"], "two saves, each event in one"
    assert told.offsets == {("source", 0): 2}
    heir, adder = place.owner()
    assert (heir.next_offset, adder.sum) == (2, 3)
