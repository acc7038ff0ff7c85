"""Inserts under way, in small pools of threads, one a table: a slow table holds up no other."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

from clickhouse_connect.driver.client import Client

from runtime.clock import now_ms
from runtime.positions import Place
from runtime.settings import Settings
from runtime.telemetry import counter, histogram, span, tracing
from streams.sink.inserts import insert, insert_if_missing
from streams.sink.ranges import Range
from streams.sink.tables import Table

THREADS_PER_TABLE: Final = 2
MAX_LINKS: Final = 128


class Pools:
    """At most one insert a partition. Every method is called by the sink's own thread."""

    def __init__(self, settings: Settings, client: Client, tables: Collection[Table]) -> None:
        self._client = client
        self._tracer = tracing(settings, "sink")
        self._pools = {
            name: ThreadPoolExecutor(THREADS_PER_TABLE, thread_name_prefix=name)
            for name in {table.name for table in tables}
        }
        self._running: dict[Place, Future[float]] = {}

    @property
    def traces(self) -> bool:
        """Whether spans are recorded."""
        return self._tracer is not None

    def __contains__(self, place: Place) -> bool:
        return place in self._running

    def __len__(self) -> int:
        return len(self._running)

    def submit(self, place: Place, table: Table, range_: Range, retrying: bool) -> None:
        """Begin an insert; `retrying` if ClickHouse may have the range."""
        self._running[place] = self._pools[table.name].submit(self._insert, table, range_, retrying)

    def done(self) -> Iterator[tuple[Place, Future[float]]]:
        """What has ended since it was asked last; the result is how long it took in seconds, or the error of `insert`."""
        for place, future in list(self._running.items()):
            if future.done():
                del self._running[place]
                yield place, future

    def wait(self, places: Collection[Place]) -> None:
        """Until the inserts of `places` have ended."""
        wait([self._running[place] for place in places if place in self._running])

    def close(self) -> None:
        """Wait for all, and end the threads."""
        for pool in self._pools.values():
            pool.shutdown()

    def _insert(self, table: Table, range_: Range, retrying: bool) -> float:
        """In a pool's thread."""
        started = time.monotonic()
        links = [record.traceparent for record in range_.records if record.traceparent][:MAX_LINKS]
        # One trace in: its next span. Several: a span of their own, linked to each.
        parent = links[0] if len(set(links)) == 1 else ""
        with span(
            self._tracer, "sink insert", parent, [] if parent else links,
            table=table.name, rows=range_.rows, token=range_.token,
        ):  # fmt: skip
            new = True
            if retrying:
                new = insert_if_missing(self._client, table, range_)
            else:
                insert(self._client, table, range_)
        took_sec = time.monotonic() - started
        histogram("tidemill_sink_insert_seconds").labels(table.name).observe(took_sec)
        histogram("tidemill_sink_visible_seconds").labels(table.name).observe(
            (now_ms() - range_.oldest_ms) / 1000
        )
        if new:
            counter("tidemill_sink_rows_total").labels(table.name).inc(range_.rows)
        return took_sec
