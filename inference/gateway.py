"""The way of one event: poll → decode → admit → route → encode → infer → emit → commit.

Three threads share the work: the consumer's (`source`), the committer's (`commit`), and the event loop, on which everything
here runs. Rows enter a transaction only after Triton answered, so a slow model holds no transaction open. What is held in
memory is bounded: beyond it, or while Triton is away, partitions are paused and the lag grows instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import numpy as np
from confluent_kafka import KafkaException
from numpy.typing import NDArray

from inference.admit import Admitted, admit
from inference.commit import TRANSACTION_BYTES, TRANSACTION_ROWS, Committer
from inference.emit import emit
from inference.halts import Halts
from inference.headers import joined
from inference.infer import Inference, Superseded
from inference.model import Model, Taken
from inference.progress import Progress
from inference.redrive import redriven
from inference.report import Report
from inference.router import route_rows
from inference.routes import Routes
from inference.source import GROUP, Source
from inference.triton import Triton
from runtime import telemetry
from runtime.clock import Clock, now_ms
from runtime.gaps import missing_alert
from runtime.kafka import raise_if_fatal
from runtime.memory import give_back_freed, keep_freed
from runtime.positions import Place
from runtime.service import Health, Stop
from runtime.settings import Settings
from runtime.stalls import StallDetector, StallGuard
from runtime.topics import existing_topics
from runtime.transactions import TransactionLost
from schemas.errors import Outage, Rejection, UserError
from schemas.spec import load_specs
from schemas.topics import REQUESTS

log = logging.getLogger(__name__)
T = TypeVar("T")

HELD_RECORDS: Final = 32_768
HELD_BYTES: Final = 24 * 1024 * 1024
"""Polled and uncommitted records of one model, beyond which no more are polled."""
READY_BYTES: Final = 24 * 1024 * 1024
"""Outputs that are not committed, beyond which no more are made: a small request may have a large observation."""
WORKERS: Final = 3
"""Micro-batches of one model that are under way at once."""
POLL_SEC: Final = 0.1
FULL_SEC: Final = 0.2
"""A model that has been full for so long is paused, so that others go on."""
RETRY_SEC: Final = 0.5
REPORT_SEC: Final = 1.0
CARE_SEC: Final = 5.0
"""Between two checks of the topics' ids, two collections of garbage, and two looks at how much memory is held."""
DRAIN_SEC: Final = 5.0


class Gateway:
    """All models of one process."""

    def __init__(self, settings: Settings, health: Health, clock: Clock = now_ms) -> None:
        specs = load_specs(settings.models_dir)
        if not specs:
            raise UserError(f"{settings.models_dir}: no model to serve, expected folders with a model.toml")
        self._settings = settings
        self._health = health
        self._clock = clock
        self._tracer = telemetry.tracing(settings, "gateway")
        models = [Model(spec) for spec in specs.values()]
        self._served = models
        self._models = {topic: model for model in models for topic in (model.requests, model.redrives)}
        """By topic: what operators send again is served like what producers send."""
        self._triton = Triton(settings.triton_grpc_url, f"{GROUP}-{settings.slot}")
        self._routes = Routes(settings, health, self._triton, {model.spec.name: model for model in models})
        self._inference = Inference(self._triton, health, self._tracer)
        self._progress = Progress()
        transaction = threading.Lock()
        followers = {model.requests: model.redrives for model in models}
        self._source = Source(settings, followers, self._progress, transaction)
        self._committer = Committer(settings, self._source, self._progress, self._models, transaction, clock)
        self._halts = Halts(self._models, clock)
        self._told: set[str] = set()
        """Alerts of missing records that are written. A log that was cut is met again and again."""
        self._stalls = StallGuard(StallDetector(settings, GROUP, shared=followers))
        self._report = Report(health, self._models, self._progress, self._source, clock)
        self._consumer_thread = ThreadPoolExecutor(1, "consumer")
        self._committer_thread = ThreadPoolExecutor(1, "committer")
        self._completed = asyncio.Event()
        self._committed = asyncio.Event()
        self._filled = asyncio.Event()

    async def run(self, stop: Stop) -> None:
        """Serve until told to stop; then finish what is under way."""
        async with contextlib.AsyncExitStack() as closing, asyncio.TaskGroup() as group:
            closing.push_async_callback(self._triton.close)
            self._stalls.start()
            closing.callback(self._stalls.close)
            closing.push_async_callback(self._in, self._consumer_thread, self._source.close)
            closing.push_async_callback(self._in, self._committer_thread, self._committer.close)
            tasks = [
                group.create_task(self._routes.follow()),
                group.create_task(self._commit()),
                group.create_task(self._watch()),
                group.create_task(self._care()),
                *(group.create_task(self._work(model)) for model in self._served for _ in range(WORKERS)),
            ]
            await self._poll(stop)
            await self._drain()
            for task in tasks:
                task.cancel()

    # ------------------------------------------------------------------------------------------------------------- poll

    async def _poll(self, stop: Stop) -> None:
        while not stop.is_set():
            paused = await self._paused()
            try:
                fragments = await self._in(self._consumer_thread, self._source.poll, POLL_SEC, paused)
            except (KafkaException, Outage) as error:
                raise_if_fatal(error)
                # Kafka went away inside a rebalance; records may have been read and not handed over.
                self._health.error(f"poll: {error}")
                await self._rewind()
                continue
            for fragment in fragments:
                self._models[fragment.assignment.topic].put(fragment)

    async def _paused(self) -> set[str]:
        """Topics not to be read now. A model that is full is given a moment first: a pause costs what was fetched ahead."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FULL_SEC):
                while any(self._is_full(model) for model in self._served if not model.away):
                    self._committed.clear()
                    await self._committed.wait()
        return {topic for topic, model in self._models.items() if not self._is_read(model)}

    def _is_read(self, model: Model) -> bool:
        return model.route is not None and not model.away and not self._is_full(model)

    def _is_full(self, model: Model) -> bool:
        records, size_bytes = self._progress.held(model.requests, model.redrives)
        return records >= HELD_RECORDS or size_bytes >= HELD_BYTES

    # ------------------------------------------------------- decode → admit → route → encode → infer → emit

    async def _work(self, model: Model) -> None:
        while True:
            await model.waiting.wait()
            await model.routed.wait()
            await model.fill(self._progress)
            if model.route is not None and not model.route.live:
                await self._routes.confirm(model)
            while self._progress.ready[1] >= READY_BYTES:
                # Rows also go without a commit: a partition is revoked, a transaction is lost.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SEC):
                        self._committed.clear()
                        await self._committed.wait()
            batch = model.take(self._progress)
            if batch:
                await self._serve(model, batch)

    async def _serve(self, model: Model, batch: list[Taken]) -> None:
        spec, route = model.spec, model.route
        if route is None:
            raise AssertionError(f"{spec.name}: served before its route is known")
        slices = [taken.piece for taken in batch]
        messages, headers = batch[0].messages, batch[0].said
        if len(batch) > 1:
            messages = [message for taken in batch for message in taken.messages]
            headers = joined((taken.piece.records, taken.said) for taken in batch)
        largest_bytes = max(taken.largest_bytes for taken in batch)
        origins = redriven(spec.name, [(taken.piece, taken.messages) for taken in batch])
        admitted = admit(spec, messages, headers, largest_bytes, origins)
        decoded = model.decoder.decode_all(admitted)
        rejections, accepted = decoded.rejections, decoded.accepted
        telemetry.histogram("tidemill_batch_rows").labels(spec.name).observe(len(admitted.rows.record))
        parents = list(dict.fromkeys(admitted.traceparents.values()))
        with telemetry.span(
            self._tracer, "gateway.batch", parents[0] if len(parents) == 1 else "", parents[1:] and parents,
            model=spec.name, rows=len(messages),
        ) as span:  # fmt: skip
            keys = _route_keys(admitted, accepted) if len(accepted) else []
            shares = route_rows(route, keys) if keys else []
            while True:
                try:
                    answers = await self._inference.answers(model, decoded.columns, shares)
                    break
                except Superseded as error:
                    log.warning("%s", error)
                    route = model.route or route
                    shares = route_rows(route, keys)
            if not shares:
                nobody = Rejection(
                    "no_ready_version", "", "a model with a ready version", f"{spec.name} has none"
                )
                rejections |= dict.fromkeys(accepted.tolist(), nobody)
            for answer in answers:
                if answer.share.served.arm.role == "live" and answer.failed.any():
                    failed = accepted[answer.share.rows[answer.failed]]
                    rejections |= dict.fromkeys(failed.tolist(), _FAILED)
            outputs = emit(
                spec, slices, messages, admitted, accepted, answers, rejections,
                decoded.request_ids,
                revision=route.revision, observed_ms=self._clock(), trace_headers=telemetry.current_traceparent(span),
                pass_until_ms=route.pass_until_ms,
            )  # fmt: skip

        for piece, output in zip(slices, outputs, strict=True):
            self._progress.complete(piece, output)
        self._completed.set()
        if self._is_transaction_full():
            self._filled.set()

    # ----------------------------------------------------------------------------------------------------------- commit

    async def _commit(self) -> None:
        while True:
            await self._completed.wait()
            self._completed.clear()
            await self._gather()
            try:
                while await self._in(self._committer_thread, self._committer.commit):
                    self._committed.set()
                    for model in self._served:
                        if not self._progress.under_way(model.requests, model.redrives):
                            model.go()
                    await self._gather()
                await self._halt()
            except (TransactionLost, Outage) as error:
                self._health.error(f"transaction lost, going back to the committed offsets: {error}")
                await self._rewind()

    async def _halt(self) -> None:
        """Hold the partitions that would have crossed a limit, and say so."""
        for piece in self._committer.take_halted():
            # What had no room beside it is still complete.
            self._completed.set()
            alert = self._halts.halted(piece)
            try:
                await self._in(self._consumer_thread, self._source.hold, piece.assignment)
            except KafkaException as error:
                raise Outage(f"committed offsets cannot be read: {error}") from error
            if alert is not None:
                self._health.error(alert.message)
                await self._in(self._committer_thread, self._committer.alert, alert)
                self._halts.told(alert)

    async def _gather(self) -> None:
        """While many rows come, wait for a full transaction, as long as every model has patience that has any under way."""
        self._filled.clear()
        waits_sec = [
            model.patience_sec if model.is_busy else 0.0
            for model in self._served
            if self._progress.under_way(model.requests, model.redrives)
        ]
        if any(waits_sec) and not self._is_transaction_full():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(waits_sec)):
                    await self._filled.wait()

    def _is_transaction_full(self) -> bool:
        rows, size_bytes = self._progress.ready
        return rows >= TRANSACTION_ROWS or size_bytes >= TRANSACTION_BYTES

    async def _rewind(self) -> None:
        while True:
            try:
                await self._in(self._consumer_thread, self._source.rewind)
                return
            except (KafkaException, Outage) as error:
                raise_if_fatal(error)
                self._health.error(f"committed offsets cannot be read: {error}")
                await asyncio.sleep(RETRY_SEC)

    async def _drain(self) -> None:
        """Commit what was polled before the stop, unless that takes too long; then a successor does it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SEC):
                while any(assignment.held_records for assignment in self._progress.assignments()):
                    self._committed.clear()
                    await self._committed.wait()

    # ------------------------------------------------------------------------------------------------------------- care

    async def _watch(self) -> None:
        while True:
            self._report.tell()
            self._stalls.reading(self._reading(), joined=self._source.joined)
            for assignment in self._halts.due(self._progress.assignments()):
                assignment.halted = ""
            await asyncio.sleep(REPORT_SEC)

    def _reading(self) -> dict[Place, int | None]:
        """How far the partitions are polled that are to be polled now."""
        positions: dict[Place, int | None] = dict.fromkeys(self._source.waiting())
        positions |= {
            (assignment.topic, assignment.partition): assignment.position
            for assignment in self._progress.assignments()
            if not assignment.halted
        }
        return {place: at for place, at in positions.items() if self._is_read(self._models[place[0]])}

    async def _care(self) -> None:
        while True:
            await asyncio.sleep(CARE_SEC)
            try:
                recreated = await self._in(self._consumer_thread, self._source.recreated)
                await self._in(self._consumer_thread, self._source.begin_made)
                if not recreated:
                    await self._pass_over_gaps()
            except (KafkaException, Outage, TransactionLost) as error:
                raise_if_fatal(error)
                self._health.error(f"topics cannot be checked: {error}")
            else:
                if recreated:
                    self._health.error(f"recreated, starting anew: {', '.join(sorted(recreated))}")
                    await self._in(self._consumer_thread, self._source.reopen)
            # Automatic collection is off, it would stop the loop at any moment. In the committer's thread it runs between transactions.
            await self._in(self._committer_thread, gc.collect)
            await self._in(self._committer_thread, give_back_freed)

    async def _pass_over_gaps(self) -> None:
        """Tell people of requests that Kafka has dropped or lost, and only then read on behind them: nobody answers them."""
        for assignment, gap in await self._in(self._consumer_thread, self._source.gaps):
            model = self._models[assignment.topic].spec.name
            alert = missing_alert(gap, GROUP, model, assignment.topic_id, self._clock())
            self._health.error(alert.message)
            if alert.event_id not in self._told:
                await self._in(self._committer_thread, self._committer.alert, alert)
                self._told.add(alert.event_id)
            await self._in(self._consumer_thread, self._source.pass_over, assignment, gap)

    async def _in(self, thread: ThreadPoolExecutor, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            thread, functools.partial(function, *arguments)
        )


_FAILED: Final = Rejection(
    "inference_failed", "", "a row that the model can answer", "the model fails on this row alone"
)


def _route_keys(admitted: Admitted, accepted: NDArray[np.int64]) -> list[bytes]:
    """What the accepted rows are routed by: their record's key; without one where they lie, which a replay finds again."""
    keys, rows = admitted.keys, admitted.rows
    everything = rows.single and len(accepted) == len(keys)
    chosen = keys if everything else [keys[record] for record in rows.record[accepted].tolist()]
    if all(chosen):
        return chosen  # type: ignore[return-value]  # none of them is None
    places = zip(
        admitted.offsets[rows.record[accepted]].tolist(), rows.within[accepted].tolist(), strict=True
    )
    return [
        key or (b"%d:%d" % place if place[1] else b"%d" % place[0])
        for key, place in zip(chosen, places, strict=True)
    ]


def serve(settings: Settings, health: Health, stop: Stop) -> None:
    """Run the gateway until `stop` is set."""

    # Only for Kafka's answer: a model that has no topics yet keeps no other waiting.
    topics = [REQUESTS.for_model(name) for name in load_specs(settings.models_dir)]
    if topics and existing_topics(settings, topics, health, stop, every=False) is None:
        return

    keep_freed()

    async def main() -> None:
        gateway = Gateway(settings, health)
        gc.collect()
        gc.freeze()
        gc.disable()
        await gateway.run(stop)

    try:
        asyncio.run(main())
    except BaseExceptionGroup as failed:
        raise first_cause(failed) from failed


def first_cause(failed: BaseException) -> BaseException:
    """The exception that made a task group fail: the first that is no group itself."""
    while isinstance(failed, BaseExceptionGroup):
        failed = failed.exceptions[0]
    return failed
