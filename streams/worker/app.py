"""The Faust app: three topics in, one event a micro-batch; assignment, back pressure and the timer that saves.

Faust gives group membership, streams and rebalancing. Its own acknowledgement is off (`acks=False`): offsets are committed after a
save, as the save says. Seven of its hazards are closed here:

* it reads uncommitted records unless it runs in exactly-once mode: `_Thread` makes the consumer read-committed;
* its commits crawl over transaction markers, each a gap: we commit the saved offset itself;
* an agent that raises goes on with the next event: here an error ends the service, since a skipped event would be lost;
* a killed worker's partitions stay idle for the session's time-out: membership is static, a restart within it moves nothing;
* it creates topics of its own: both switches are off;
* after a rebalance the first event of a partition need not be the one that follows what was saved: that is looked at, and if one was
  passed over the process begins anew;
* a leader to whom the broker did not name a topic, as one that has just started may do, gives its partitions to nobody, and all wait for
  minutes: `_Assignor` assigns all topics or none, and the process begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import faust
from faust.app.base import BootStrategy
from faust.assignor.partition_assignor import PartitionAssignor
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from runtime.kafka import SESSION_TIMEOUT_MS
from runtime.service import Stop
from runtime.settings import Settings
from schemas.errors import Outage, TidemillError
from schemas.topics import OBSERVATIONS, OUTCOMES, PARTIALS
from streams.worker.state import RETRY_SEC, Processor, SourcePartition

log = logging.getLogger(__name__)

GROUP: Final = "worker"
TOPICS: Final = (OBSERVATIONS.name, OUTCOMES.name, PARTIALS.name)
SAVE_EVERY_SEC: Final = (1.0, 2.0)
"""Shortest and longest pause between saves: four times what the last one took, so that saving takes at most a fifth of the time."""
SAVE_AT_RECORDS: Final = 5000
"""A save that would write more than this does not wait for the timer, and the stream waits for the save."""
FETCH_WAIT_MS: Final = 100
"""A fetch that has nothing to bring waits this long. While it does, aiokafka sends no other to the broker, and a fetch of partitions with nothing
new, sent while the others' records wait to be taken, holds them up; Faust would let it wait for 1.5 s."""
FETCH_BYTES: Final = 4 * 1024 * 1024
"""Of a partition at once: what is read while the records before it are measured."""
STREAM_EVENTS: Final = 64
"""Micro-batches that may wait in a stream."""

MakeProcessor = Callable[[str, int], Processor]


class _Thread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: driver.Transport) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class _Consumer(driver.Consumer):
    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)


class _Transport(driver.Transport):
    Consumer = _Consumer


class _Assignor(PartitionAssignor):
    def assign(self, cluster: Any, member_metadata: Any) -> Any:
        """What each member gets, as the leader sees it.

        Raises:
            Outage: the broker has not named a topic. Faust's fetcher does not see this error before something is assigned: the app ends by it.
        """
        unknown = [name for name in TOPICS if not cluster.partitions_for_topic(name)]
        if unknown:
            error = Outage(f"Kafka does not tell the partitions of {', '.join(unknown)}: starting anew")
            asyncio.run_coroutine_threadsafe(self.app.crash(error), self.app.loop)
            raise error
        return super().assign(cluster, member_metadata)


class _Boot(BootStrategy):
    """No producer: what is written is written in transactions of our own."""

    enable_kafka_producer = False
    enable_web = False


class Worker:
    """The app and the source partitions that it holds. Everything here runs in the event loop; what waits for Kafka runs in threads."""

    def __init__(self, settings: Settings, make: MakeProcessor, stop: Stop) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends with the first error; the service ends with it."""
        self.sources: dict[tuple[str, int], SourcePartition] = {}
        """Opened so far: those of the assigned partitions that had an event."""
        self.assigned: set[tuple[str, int]] = set()
        self._settings = settings
        self._make = make
        self._stop = stop
        self._events: dict[tuple[str, int], asyncio.Lock] = {}
        """Of each partition: one event at a time."""
        self._saves: dict[tuple[str, int], asyncio.Lock] = {}
        """Of each partition: one save at a time, while events go on. Who holds both took this one second."""
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="save")
        self._saver: asyncio.Task[bool] | None = None
        self._closing = asyncio.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="tidemill-worker-")
        self._app = self._make_app()

    async def start(self) -> None:
        """Join the group and process."""
        await self._app.start()
        # Faust makes folders when it starts and keeps nothing in them. A worker that is killed cleans up no more.
        self._folder.cleanup()
        self._saver = asyncio.create_task(self._guarded(self._save_by_timer()))

    async def close(self) -> None:
        """Save what is whole, leave, let go."""
        # Not cancelled: a save that is under way in its thread is waited for.
        self._closing.set()
        if self._saver is not None:
            await self._saver
        try:
            if not self.failed.done():
                await self._release(set(self.sources))
        finally:
            await self._app.stop()
            await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)

    @property
    def crashed(self) -> BaseException | None:
        """Why Faust itself gave up, if it did."""
        reason = self._app.crash_reason
        if reason is not None or not self._app.crashed:
            return reason
        return RuntimeError("Faust stopped without saying why")

    def _make_app(self) -> faust.App:
        brokers = ";".join(f"kafka://{address}" for address in self._settings.kafka_bootstrap.split(","))
        app = faust.App(
            GROUP,
            broker=brokers,
            PartitionAssignor=_Assignor,
            datadir=self._folder.name,
            loop=asyncio.get_running_loop(),
            consumer_group_instance_id=f"{GROUP}-{self._settings.slot}",
            consumer_auto_offset_reset="earliest",
            broker_session_timeout=SESSION_TIMEOUT_MS / 1000,
            broker_heartbeat_interval=2.0,
            broker_request_timeout=30.0,
            stream_buffer_maxsize=STREAM_EVENTS,
            broker_max_poll_records=STREAM_EVENTS,
            consumer_max_fetch_size=FETCH_BYTES,
            stream_wait_empty=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
            store="memory://",
        )
        app.transport = _Transport(app.conf.broker_consumer, app, loop=app.loop)
        app.boot_strategy = _Boot(app)
        for name in TOPICS:
            topic = app.topic(
                name,
                key_type=bytes,
                value_type=bytes,
                key_serializer="raw",
                value_serializer="raw",
                acks=False,
            )
            app.agent(topic, name=name)(self._agent)
        # Typed for functions without a name for their first argument only.
        assigned: Any = app.on_partitions_assigned
        revoked: Any = app.on_partitions_revoked
        assigned.connect(self._on_assigned)
        revoked.connect(self._on_revoked)
        return app

    async def _agent(self, stream: Any) -> AsyncIterator[None]:
        async for event in stream.events():
            message = event.message
            await self._guarded(
                self._handle((message.topic, message.partition), message.offset, message.value)
            )
            yield

    async def _handle(self, place: tuple[str, int], offset: int, value: bytes | None) -> None:
        async with self._events.setdefault(place, asyncio.Lock()):
            if place not in self.assigned:
                return  # it came before its partition went elsewhere, where it is read again
            source = self.sources.get(place)
            if source is None:
                source = self.sources[place] = await self._opened(place, offset)
            source.apply(offset, value or b"")
            if source.processor.size >= SAVE_AT_RECORDS:
                await self._save(place)

    async def _opened(self, place: tuple[str, int], offset: int) -> SourcePartition:
        """The source, whose first event is the one at `offset`.

        Raises:
            TidemillError: there are events before that one. The group's offset is where the state ends now, and there a new process begins.
        """
        topic, partition = place
        while True:
            source = SourcePartition(
                self._settings, self._make(topic, partition), topic, partition, self._stop
            )
            try:
                await self._in_thread(source.open)
                if not await self._in_thread(source.passes_over, offset):
                    return source
            except Outage as error:
                log.warning("%s-%d: %s", topic, partition, error)
                await self._in_thread(source.close)
                await asyncio.sleep(RETRY_SEC)
            else:
                await self._in_thread(source.close)
                await self._commit(source, source.next_offset)
                raise TidemillError(
                    f"{topic}:{partition}: was handed offset {offset} after {source.next_offset}, and there are events between: starting anew"
                )

    async def _save_by_timer(self) -> None:
        shortest, longest = SAVE_EVERY_SEC
        loop = asyncio.get_running_loop()
        pause = shortest
        while not await _set_within(self._closing, pause):
            began = loop.time()
            await asyncio.gather(*(self._save(place) for place in list(self.sources)))
            pause = min(longest, max(shortest, 4 * (loop.time() - began)))

    async def _save(self, place: tuple[str, int]) -> None:
        """Write what came, then commit the offset to the group."""
        async with self._saves.setdefault(place, asyncio.Lock()):
            source = self.sources.get(place)
            save = None if source is None else source.drain()
            if source is None or save is None:
                return
            await self._in_thread(source.write, save)
            await self._commit(source, save.next_offset)

    async def _commit(self, source: SourcePartition, next_offset: int) -> None:
        """Tell the group."""
        consumer: Any = self._app.consumer
        await consumer._commit({TP(source.topic, source.partition): next_offset})

    async def _release(self, places: set[tuple[str, int]]) -> None:
        """Save and let go of these partitions, which go elsewhere."""
        for place in places:
            async with self._events.setdefault(place, asyncio.Lock()):
                await self._save(place)
                # Nothing can come between: a save that waited for this one finds the source gone.
                source = self.sources.pop(place, None)
                if source is not None:
                    await self._in_thread(source.close)

    async def _on_assigned(self, _app: Any, assigned: Iterable[TP], **_: Any) -> None:
        self.assigned |= {(tp.topic, tp.partition) for tp in assigned}

    async def _on_revoked(self, _app: Any, revoked: Iterable[TP], **_: Any) -> None:
        places = {(tp.topic, tp.partition) for tp in revoked}
        self.assigned -= places
        if not self.failed.done():
            # One that was fenced must not try again: what it has not saved is another's.
            await self._guarded(self._release(places))

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    async def _guarded(self, work: Awaitable[None]) -> bool:
        """Run a step and say whether it went well; its error ends the service."""
        try:
            await work
        except Exception as error:  # noqa: BLE001  handed to whoever waits for `failed`, which raises it
            if not self.failed.done():
                self.failed.set_exception(error)
            return False
        return True


async def _set_within(event: asyncio.Event, timeout_sec: float) -> bool:
    """Whether `event` was set within this time."""
    try:
        await asyncio.wait_for(event.wait(), timeout_sec)
    except TimeoutError:
        return False
    return True
