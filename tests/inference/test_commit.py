"""What a transaction writes of micro-batches, in which order and where; the producer only takes it down."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from inference import commit
from inference.commit import Committer
from inference.progress import Assignment, Observed, Output, Progress, Slice
from schemas.arrow import OBSERVATIONS, decode_batch
from schemas.spec import DeadLetters

PARTITIONS = 2


class Taken:
    """A transactional producer as the committer sees it."""

    def __init__(self, *_: object, **__: object) -> None:
        self.transactions: list[list[tuple[str, int, Any]]] = []
        self.open: list[tuple[str, int, Any]] = []

    def begin(self) -> None:
        self.open = []

    def send_offsets(self, *_: object) -> None:
        pass

    def produce(self, topic: str, value: Any, _key: object, _headers: object, partition: int) -> None:
        self.open.append((topic, partition, value))

    def produce_run(self, topic: str, values: list[bytes], _keys: object, partition: int) -> None:
        self.open += [(topic, partition, value) for value in values]

    def partitions(self, _topic: str) -> int:
        return PARTITIONS

    def poll(self) -> None:
        pass

    def commit(self) -> None:
        self.transactions.append(self.open)


def observations(rows: int) -> pa.RecordBatch:
    columns = [
        pa.array([i.to_bytes(16, "big") if name == "prediction_id" else None for i in range(rows)], kind)
        for name, kind in zip(OBSERVATIONS.names, OBSERVATIONS.types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=OBSERVATIONS)


class World:
    """A committer, and one assignment of each partition."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(commit, "TransactionalProducer", Taken)
        self.progress = Progress()
        self.owned = [Assignment("requests.m", number, uuid.UUID(int=7), 0, 0) for number in range(3)]
        for assignment in self.owned:
            self.progress.assign(assignment)
        spec = SimpleNamespace(name="m", dead_letters=DeadLetters())
        models = {"requests.m": SimpleNamespace(spec=spec, predictions="predictions.m")}
        self.committer = Committer(
            cast("Any", SimpleNamespace(slot=0)), cast("Any", SimpleNamespace(group_metadata=None)), self.progress,
            cast("Any", models), threading.Lock(), lambda: 0,
        )  # fmt: skip

    def micro_batch(self, *sizes: int) -> list[tuple[Slice, Output]]:
        """Slices of so many rows of the partitions 0, 1, …, begun, and what they come to."""
        bounds = np.cumsum([0, *sizes])
        rows = int(bounds[-1])
        observed = Observed(observations(rows), np.arange(rows), bounds, [])
        found = []
        for place, (assignment, size) in enumerate(zip(self.owned, sizes, strict=False)):
            piece = Slice(assignment, assignment.position + size, size, size, 10 * size, 0)
            self.progress.polled(assignment, piece.next_offset, size, 10 * size, 0)
            assert self.progress.begin(piece)
            values = [b"%d" % row for row in range(bounds[place], bounds[place + 1])]
            output = Output(values, [None] * size, {}, observed, place, 10 * size, [], Counter())
            found.append((piece, output))
        return found

    def committed(self) -> list[tuple[str, int, Any]]:
        """What the next transaction holds."""
        assert self.committer.commit()
        return cast("Taken", self.committer._producer).transactions[-1]


def ids(value: pa.Buffer) -> list[int]:
    return [int.from_bytes(each, "big") for each in decode_batch(value)["prediction_id"].to_pylist()]


def test_a_micro_batch_is_one_observation_and_the_next_goes_to_the_next_partition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    homes = []
    for _ in range(3):
        for piece, output in world.micro_batch(3, 2, 4):
            world.progress.complete(piece, output)
        records = world.committed()
        # One of each partition comes first, so that the client registers all of them with the transaction at once.
        assert {(topic, at) for topic, at, _ in records[:4]} == {(topic, at) for topic, at, _ in records}
        ((home, value),) = [
            (partition, value) for topic, partition, value in records if topic == "observations"
        ]
        assert ids(value) == list(range(9))
        of = [
            [v for topic, at, v in records if (topic, at) == ("predictions.m", number)] for number in range(3)
        ]
        assert of == [[b"0", b"1", b"2"], [b"3", b"4"], [b"5", b"6", b"7", b"8"]]
        homes.append(home)
    assert homes == [1, 0, 1]


def test_two_micro_batches_of_one_transaction_are_two_records_in_one_partition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    for piece, output in [*world.micro_batch(3, 2), *world.micro_batch(1, 0, 2)]:
        world.progress.complete(piece, output)
    records = [(at, ids(value)) for topic, at, value in world.committed() if topic == "observations"]
    assert records == [(1, [0, 1, 2, 3, 4]), (1, [0, 1, 2])]


def test_of_a_micro_batch_only_what_is_committed_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    (first, of_first), (second, of_second), (third, of_third) = world.micro_batch(3, 2, 4)
    world.progress.complete(first, of_first)
    world.progress.revoke("requests.m", 1)
    world.progress.complete(second, of_second)
    records = world.committed()
    assert [ids(value) for topic, _, value in records if topic == "observations"] == [[0, 1, 2]]
    world.progress.complete(third, of_third)
    records = world.committed()
    assert [ids(value) for topic, _, value in records if topic == "observations"] == [[5, 6, 7, 8]]
    assert {at for topic, at, _ in records if topic == "predictions.m"} == {2}
    assert not world.committer.commit()
