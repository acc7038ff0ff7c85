"""When the rows of a model go to Triton: at once if nothing is under way, in company if something is, or if many come."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest
from confluent_kafka import Message

from inference.model import BATCH_BYTES, BATCH_NUMBERS, MANY_ROWS, Fragment, Model, batch_rows
from inference.progress import Assignment, Progress
from schemas.spec import decode_spec

LONG_MS = 120_000
SPEC = decode_spec(
    'name = "toy"\ntask = "binary"\nclasses = ["no", "yes"]\nmodule = "m:T"\n'
    f'[features]\nx = {{ type = "float" }}\n[serve]\nmax_batch_rows = 3\nlatency_budget_ms = {LONG_MS}\n',
    "toy",
)


def arrive(
    model: Model, progress: Progress, assignment: Assignment, records: int, size_bytes: int = 1
) -> None:
    first = assignment.position
    messages = [
        Message(
            topic=assignment.topic, partition=0, offset=offset, timestamp=(1, 0), value=json.dumps({"x": 1}).encode()
        )
        for offset in range(first, first + records)
    ]  # fmt: skip
    progress.polled(assignment, first + records, records, records * size_bytes, 0)
    model.put(Fragment(assignment, messages, [size_bytes] * records))


def test_wide_rows_make_smaller_micro_batches() -> None:
    def most_rows(width: int, said: int) -> int:
        features = "\n".join(f'x{i} = {{ type = "float" }}' for i in range(width))
        text = f'name = "toy"\ntask = "binary"\nclasses = ["no", "yes"]\nmodule = "m:T"\n[serve]\nmax_batch_rows = {said}\n[features]\n{features}\n'
        return batch_rows(decode_spec(text, "toy"))

    assert [most_rows(8, 4096), most_rows(784, 4096), most_rows(784, 100)] == [4096, 668, 100]
    assert most_rows(2_000, BATCH_NUMBERS) * 2_000 <= BATCH_NUMBERS


def test_a_lone_row_goes_at_once_and_the_next_waits_until_it_is_committed_or_the_batch_is_full() -> None:
    async def scenario() -> None:
        model, progress = Model(SPEC), Progress()
        mine = Assignment(model.requests, 0, uuid.uuid4(), 0, 0)
        progress.assign(mine)

        arrive(model, progress, mine, 1)
        await asyncio.wait_for(model.fill(progress), 5)
        ((lone, *_),) = model.take(progress)

        arrive(model, progress, mine, 1)
        waiting = asyncio.create_task(model.fill(progress))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        progress.confirm([lone])
        model.go()
        await asyncio.wait_for(waiting, 5)
        ((second, *_),) = model.take(progress)

        arrive(model, progress, mine, 2)
        waiting = asyncio.create_task(model.fill(progress))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        arrive(model, progress, mine, 1)
        await asyncio.wait_for(waiting, 5)
        ((full, *_),) = model.take(progress)
        assert [piece.rows for piece in (lone, second, full)] == [1, 1, 3]

    asyncio.run(scenario())


class Clock:
    """An event loop's, which stands."""

    def __init__(self) -> None:
        self.sec = 100.0

    def __call__(self) -> float:
        return self.sec


async def turns() -> None:
    """Until whoever can go on has."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_many_rows_wait_for_company_though_nothing_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        clock = Clock()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
        model, progress = Model(SPEC), Progress()
        mine = Assignment(model.requests, 0, uuid.uuid4(), 0, 0)
        progress.assign(mine)
        batch, enough = model.batch_rows, int(MANY_ROWS / model.patience_sec) + 1

        arrive(model, progress, mine, 1)
        clock.sec += 1
        arrive(model, progress, mine, enough)
        assert model.is_busy
        while len(model.take(progress)):
            pass

        arrive(model, progress, mine, batch - 1)
        waiting = asyncio.create_task(model.fill(progress))
        await turns()
        model.go()
        await turns()
        assert not waiting.done(), "many wait on, although what was under way is committed"
        arrive(model, progress, mine, 2)
        await asyncio.wait_for(waiting, 5)
        assert [taken.piece.rows for taken in model.take(progress)] == [batch]

        waiting = asyncio.create_task(model.fill(progress))
        await turns()
        assert not waiting.done(), "one is left, and has company to wait for"
        clock.sec += model.patience_sec + 0.1
        await asyncio.wait_for(waiting, 5)
        assert [taken.piece.rows for taken in model.take(progress)] == [1]

        clock.sec += 1
        arrive(model, progress, mine, 1)
        assert not model.is_busy

    asyncio.run(scenario())


def test_a_micro_batch_is_full_of_bytes_too() -> None:
    async def scenario() -> None:
        model, progress = Model(SPEC), Progress()
        mine = Assignment(model.requests, 0, uuid.uuid4(), 0, 0)
        progress.assign(mine)
        arrive(model, progress, mine, 1)
        model.take(progress)

        arrive(model, progress, mine, 2, size_bytes=BATCH_BYTES // 2)
        await asyncio.wait_for(model.fill(progress), 5)

    asyncio.run(scenario())
