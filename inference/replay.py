"""Replay: requests that were asked before, through any version that the artifact store still has, into the topic `replays`.

It is the gateway's own way of a request (admit, decode, encode, infer, observe) with three differences: one version answers every row, no
route table is asked, and nothing is transactional. The last is allowed because everything has a name: a run is named by (model, artifact,
offsets), a row of it by its prediction id, so that what is written twice is there once for a reader. A replay that was killed is finished
by running it again.

It belongs to no group and commits nothing. Micro-batches are cut by offset, never by what a poll happened to bring: the same run asks
Triton the same batches. Two are under way at once, since live traffic shares the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import KafkaError, KafkaException, Message
from numpy.typing import NDArray

from inference.admit import admit
from inference.emit import ARROW_HEADERS, row_ids
from inference.gateway import first_cause
from inference.headers import said
from inference.infer import Inference
from inference.model import Model
from inference.observe import observation_rows, observation_values
from inference.ranges import cut, open_reader
from inference.replay_plan import Plan, route_table, spec_of
from inference.router import ServedArm, Share
from inference.triton import InferenceFailed, Triton
from inference.versions import Version, open_version, prove
from runtime.artifacts import ArtifactStore
from runtime.clock import now_ms
from runtime.headers import pairs, text
from runtime.kafka import admin, producer, topic_ids
from runtime.service import Health
from runtime.settings import Settings
from schemas.arrow import REPLAYS
from schemas.errors import Outage, UserError
from schemas.events import Arm
from schemas.formats import arrow_rows_limit, request_rows
from schemas.requests import CONTENT_TYPE
from schemas.topics import REPLAYS as REPLAYS_TOPIC

log = logging.getLogger(__name__)

WORKERS: Final = 2
"""Micro-batches under way at once."""
FLUSH_SEC: Final = 60.0
TELL_SEC: Final = 0.2
_POLL_SEC: Final = 0.2
_WRITER: Final[dict[str, Any]] = {"queue.buffering.max.kbytes": 64 * 1024}
REPLAYED: Final = "replay"
"""Role and arm of a replayed row: neither live nor shadow."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run has come. `offsets` of `Range.offsets` are done."""

    offsets: int
    rows: int
    rejected: int
    held: str
    """Why it waits, "" if it does not."""


async def run(settings: Settings, planned: Plan, on_progress: Callable[[Progress], None]) -> Progress:
    """Run it: every row of the range is in `replays`, acknowledged by the broker, when this returns. While Triton is away it waits.

    Raises:
        ArtifactError: the version must not answer: missing, altered, or its golden batch fails.
        UserError: Kafka dropped part of the range meanwhile.
        Outage: Kafka is away, or Triton was when it began.
    """
    spec = spec_of(settings, planned.model)
    triton = Triton(settings.triton_grpc_url)
    try:
        version = open_version(ArtifactStore(settings.artifacts_dir), spec, planned.artifact)
        try:
            await prove(triton, version)
            found = await _Run(settings, planned, version, triton).run(on_progress)
        finally:
            await _unload(settings, triton, version)
        topic = planned.range.topic
        if topic_ids(admin(settings), [topic]).get(topic) != planned.range.topic_id:
            raise UserError(f"{topic} was recreated while it was replayed: the run is not whole")
        return found
    except KafkaException as error:
        raise Outage(f"Kafka: {error.args[0].str()}") from error
    finally:
        await triton.close()


class _Run:
    """One run, on the event loop; the reader has a thread of its own."""

    def __init__(self, settings: Settings, planned: Plan, version: Version, triton: Triton) -> None:
        self._settings = settings
        self._range = planned.range
        self._run_id = planned.run_id
        self._model = Model(version.spec)
        # To the inference it is a live arm: its rows are waited for, and a poison row is looked for.
        arm = Arm(name=REPLAYED, role="live", version=version.name, artifact=version.artifact)
        self._served = ServedArm(arm, version)
        self._inference = Inference(triton, Health("replay"), None)
        self._producer = producer(settings, **_WRITER)
        self._failures: list[str] = []
        self._offsets = self._rows = self._rejected = 0

    async def run(self, on_progress: Callable[[Progress], None]) -> Progress:
        """All batches, then everything acknowledged."""
        waiting: asyncio.Queue[list[Message]] = asyncio.Queue(1)
        telling = asyncio.create_task(self._tell(on_progress))
        try:
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(self._work(waiting)) for _ in range(WORKERS)]
                await self._read(waiting)
                await waiting.join()
                for worker in workers:
                    worker.cancel()
        except BaseExceptionGroup as failed:
            raise first_cause(failed) from failed
        finally:
            telling.cancel()
        unsent = await asyncio.to_thread(self._producer.flush, FLUSH_SEC)
        self._check(unsent)
        return self._progress()

    async def _read(self, waiting: asyncio.Queue[list[Message]]) -> None:
        loop = asyncio.get_running_loop()
        reader = open_reader(self._settings)
        with ThreadPoolExecutor(1, "reader") as thread:
            try:
                batches = cut(reader, self._range, self._model.batch_rows, self._rows_of)
                while (batch := await loop.run_in_executor(thread, next, batches, None)) is not None:
                    if batch:
                        await waiting.put(batch)
            finally:
                # In its own thread: it may still be polling when this task is cancelled.
                thread.submit(reader.close)

    def _rows_of(self, message: Message) -> int:
        headers = message.headers()
        if not headers:
            return 1
        limit = arrow_rows_limit(self._model.spec)
        return request_rows(message.value(), text(pairs(headers), CONTENT_TYPE), limit)

    async def _work(self, waiting: asyncio.Queue[list[Message]]) -> None:
        while True:
            messages = await waiting.get()
            rows, row_of = await self._observe(messages)
            for value in observation_values(_marked(rows, self._run_id), row_of):
                self._produce(value, messages[0].partition() or 0)
            self._offsets += (messages[-1].offset() or 0) - (messages[0].offset() or 0) + 1
            self._rows += rows.num_rows
            self._rejected += pc.sum(pc.equal(rows["status"], "rejected")).as_py()
            self._check()
            waiting.task_done()

    async def _observe(self, messages: list[Message]) -> tuple[pa.RecordBatch, NDArray[np.int64]]:
        """What the gateway would observe, had this version been the only one, and the row that each observation is of."""
        model = self._model
        admitted = admit(model.spec, messages, said(messages), max(map(len, messages)))
        decoded = model.decoder.decode_all(admitted)
        everything = np.arange(len(decoded.accepted))
        shares = [Share(self._served, everything, 1.0)] if len(everything) else []
        answers = await self._inference.answers(model, decoded.columns, shares)
        runs = [(self._range.topic_id, messages[0].partition() or 0, len(messages))]
        return observation_rows(
            model.spec, admitted, row_ids(admitted, runs), runs, decoded.request_ids,
            decoded.accepted, answers, decoded.rejections, revision=0, observed_ms=now_ms(),
        )  # fmt: skip

    def _produce(self, value: bytes, partition: int) -> None:
        key = f"{self._run_id}:{partition}".encode()
        while True:
            try:
                self._producer.produce(
                    REPLAYS_TOPIC.name, value, key, headers=ARROW_HEADERS, on_delivery=self._delivered
                )
                break
            except BufferError:
                self._producer.poll(_POLL_SEC)
        self._producer.poll(0)

    def _delivered(self, error: KafkaError | None, _message: object) -> None:
        if error is not None:
            self._failures.append(error.str())

    def _check(self, unsent: int = 0) -> None:
        if self._failures or unsent:
            why = self._failures[0] if self._failures else f"{unsent} records not acknowledged"
            raise Outage(f"Kafka did not take the results: {why}; run the same replay again")

    async def _tell(self, on_progress: Callable[[Progress], None]) -> None:
        while True:
            on_progress(self._progress())
            await asyncio.sleep(TELL_SEC)

    def _progress(self) -> Progress:
        return Progress(
            offsets=self._offsets, rows=self._rows, rejected=self._rejected, held=self._model.away
        )


def _marked(rows: pa.RecordBatch, run_id: str) -> pa.RecordBatch:
    """Observations as rows of the run."""
    own = {"run_id": run_id, "role": REPLAYED}
    return pa.RecordBatch.from_arrays(
        [
            pa.repeat(pa.scalar(own[field.name], field.type), rows.num_rows)
            if field.name in own
            else rows[field.name]
            for field in REPLAYS
        ],
        schema=REPLAYS,
    )


async def _unload(settings: Settings, triton: Triton, version: Version) -> None:
    """Let Triton drop the version, if no route names it: the gateway unloads only what it has served."""
    spec = version.spec
    try:
        table = await asyncio.to_thread(route_table, settings, spec.name)
        arms = [] if table is None else table.arms
        named = {arm.artifact for arm in arms} | (
            set() if table is None else {*table.retained, table.previous}
        )
        if version.artifact in named:
            return
        live = [arm.artifact for arm in arms if arm.role == "live"]
        inputs, rows = version.golden_inputs, len(version.golden_scores)
        # It is dropped before the request is answered; without a live version nobody can answer, and that is all right.
        with contextlib.suppress(InferenceFailed):
            await triton.infer(spec, live[0] if live else "", inputs, rows, unload=version.artifact)
    except (Outage, KafkaException) as error:
        log.warning("%s/%s stays loaded until Triton restarts: %s", spec.name, version.artifact, error)
