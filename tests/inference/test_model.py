"""When the rows of a model go to Triton: at once if nothing is under way, in company if something is."""

from __future__ import annotations

import asyncio
import json
import uuid

from confluent_kafka import Message

from inference.model import BATCH_NUMBERS, Fragment, Model, batch_rows
from inference.progress import Assignment, Progress
from schemas.spec import decode_spec

LONG_MS = 3_600_000
SPEC = decode_spec(
    'name = "toy"\ntask = "binary"\nclasses = ["no", "yes"]\nmodule = "m:T"\n'
    f'[features]\nx = {{ type = "float" }}\n[serve]\nmax_batch_rows = 3\nlatency_budget_ms = {LONG_MS}\n',
    "toy",
)


def arrive(model: Model, progress: Progress, assignment: Assignment, records: int) -> None:
    first = assignment.position
    messages = [
        Message(
            topic=assignment.topic, partition=0, offset=offset, timestamp=(1, 0), value=json.dumps({"x": 1}).encode()
        )
        for offset in range(first, first + records)
    ]  # fmt: skip
    progress.polled(assignment, first + records, records, records, 0)
    model.put(Fragment(assignment, messages, [1] * records))


def test_wide_rows_make_smaller_micro_batches() -> None:
    def most_rows(width: int, said: int) -> int:
        features = "\n".join(f'x{i} = {{ type = "float" }}' for i in range(width))
        text = f'name = "toy"\ntask = "binary"\nclasses = ["no", "yes"]\nmodule = "m:T"\n[serve]\nmax_batch_rows = {said}\n[features]\n{features}\n'
        return batch_rows(decode_spec(text, "toy"))

    assert [most_rows(8, 4096), most_rows(784, 4096), most_rows(784, 100)] == [4096, 1337, 100]
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
