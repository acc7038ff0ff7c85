"""`tidemill bench ingest`: observations to ClickHouse rows by the sink alone, beside a loop that only inserts the same Arrow batches.

The loop inserts into a copy of the table without materialized views and plans nothing: what is lost when it dies is lost.
"""

from __future__ import annotations

import time
from typing import Any, Final

import click
import pyarrow as pa
from clickhouse_connect.driver.client import Client

from benchmarks.deploy import deploy
from benchmarks.histogram import Histogram
from benchmarks.load import Backlog, ends
from benchmarks.meter import StageFailed, Visible, count, watch
from benchmarks.observed import Observed
from benchmarks.options import BATCH_ROWS, JSON, TURNS, quick_is, seed_of
from benchmarks.report import Line, Result, median, progress, ratio, show
from benchmarks.stages import Bench, Service, bench, running
from runtime.kafka import producer
from runtime.settings import Settings
from schemas.arrow import encode_batch
from schemas.errors import Outage
from schemas.spec import load_spec
from schemas.topics import OBSERVATIONS

MODEL: Final = "floats_8"
ROWS: Final = 1_500_000
QUICK_ROWS: Final = 300_000
INSERT_ROWS: Final = 65_536
"""That the bare loop inserts at once, about as many as the sink with a backlog."""
LIVE_SEC: Final = 15.0
LIVE_EVERY_SEC: Final = 0.05
LIVE_ROWS: Final = 1024
"""A batch of so many so often while visibility is measured: 20,480 rows/s."""


@click.command()
@click.option("--rows", type=click.IntRange(min=QUICK_ROWS), help=f"Rows of a backlog.  [default: {ROWS:,}]")
@BATCH_ROWS
@TURNS
@seed_of("the rows")
@quick_is("One turn, fewer rows")
@JSON
def command(
    rows: int | None, batch_rows: int | None, turns: int, seed: int, quick: bool, as_json: bool
) -> None:
    """Observations to ClickHouse rows, and the time until they are visible."""
    found = measure(rows or (QUICK_ROWS if quick else ROWS), batch_rows, 1 if quick else turns, seed)
    show(found._replace(quick=quick), as_json)


def measure(rows: int, batch_rows: int | None, turns: int, seed: int) -> Result:
    """Turns of sink and bare loop; then visibility at a fixed rate."""
    ours: list[float] = []
    bare: list[float] = []
    cpu_us: list[float] = []
    with bench([MODEL]) as at, at.clickhouse() as client:
        spec = load_spec(at.settings.models_dir / MODEL)
        batch_rows = batch_rows or spec.serve.max_batch_rows
        deploy(at.settings, MODEL, seed=seed)
        made = Observed(spec, "1.0", seed)
        progress("making batches")
        for turn in range(turns + 1):
            batches = [made.batch(batch_rows) for _ in range(max(1, rows // batch_rows))]
            if turn:
                progress(
                    f"turn {turn} of {turns}: a bare Arrow insert loop, {len(batches) * batch_rows:,} rows"
                )
                bare.append(_bare(client, batches))
                progress(f"    {bare[-1]:,.0f} rows/s")
            progress(f"{'turn ' + str(turn) if turn else 'warming'}: the sink")
            backlog = produce_batches(at.settings, batches if turn else batches[: max(1, len(batches) // 3)])
            visible = Visible(client, MODEL)
            sink = Service(at, "sink")
            with running(sink):
                run = watch(visible, backlog.rows, {"sink": sink.pid} | at.pids(), alive=sink.check)
            if turn:
                ours.append(run.rows_per_sec)
                cpu_us.append(run.cpu_us_per_row("sink"))
                progress(f"    {run.rows_per_sec:,.0f} rows/s")
        histogram = _visibility(at, client, made)
    figures: dict[str, Any] = {
        "batch_rows": batch_rows,
        "rows_per_s": median(ours),
        "bare_insert_rows_per_s": median(bare),
        "ratio_to_bare_insert": ratio(zip(ours, bare, strict=True)),
        "sink_cpu_us_per_row": median(cpu_us),
        "visible_p50_ms": histogram.percentile_ms(50),
        "visible_p99_ms": histogram.percentile_ms(99),
        "visible_at_rows_per_s": LIVE_ROWS / LIVE_EVERY_SEC,
    }
    lines = [
        Line("sink", ours, "rows/s"),
        Line("bare Arrow insert loop", bare, "rows/s", "no plan, no views"),
        *(Line(f"until visible, p{p:g}", [histogram.percentile_ms(p)], "ms") for p in (50, 90, 99)),
    ]
    return Result("ingest", figures, lines, seed, turns)


def produce_batches(settings: Settings, batches: list[pa.RecordBatch], partitions: int = 2) -> Backlog:
    """Put batches, all of as many rows, on `observations`, in turn over its partitions.

    Raises:
        Outage: the broker does not take them.
    """
    start = ends(settings, OBSERVATIONS.name)
    client = producer(settings, **{"delivery.report.only.error": True, "queue.buffering.max.kbytes": 262_144})
    for i, batch in enumerate(batches):
        while True:
            try:
                client.produce(OBSERVATIONS.name, encode_batch(batch), b"bench", partition=i % partitions)
                break
            except BufferError:
                client.poll(0.05)
    if client.flush(120):
        raise Outage("the backlog of observations was not delivered within 120 s")
    return Backlog(OBSERVATIONS.name, start, ends(settings, OBSERVATIONS.name), len(batches[0]))


def _bare(client: Client, batches: list[pa.RecordBatch]) -> float:
    """Rows per second."""
    client.command("DROP TABLE IF EXISTS internal.bench_observations")
    client.command("CREATE TABLE internal.bench_observations AS internal.observations")
    started = time.monotonic()
    at_once = max(1, INSERT_ROWS // len(batches[0]))
    for first in range(0, len(batches), at_once):
        table = pa.Table.from_batches(batches[first : first + at_once])
        client.insert_arrow("internal.bench_observations", table)
    spent_sec = time.monotonic() - started
    found = count(client, "SELECT count() FROM internal.bench_observations")
    client.command("DROP TABLE internal.bench_observations")
    expected = sum(map(len, batches))
    if found != expected:
        raise StageFailed(f"the bare loop inserted {expected} rows and {found} are there")
    return expected / spent_sec


def _visibility(at: Bench, client: Client, made: Observed) -> Histogram:
    """How long a batch, sent on time, is not visible. All go to one partition, so that they appear in the order of sending."""
    progress("time until visible")
    histogram = Histogram()
    sender = producer(at.settings, **{"linger.ms": 0})
    sink = Service(at, "sink")
    with running(sink):
        sink.wait_ready()
        visible = Visible(client, MODEL)
        started = time.monotonic()
        sent: list[float] = []
        shown = 0
        batches = int(LIVE_SEC / LIVE_EVERY_SEC)
        while shown < batches:
            now = time.monotonic()
            while len(sent) < batches and started + len(sent) * LIVE_EVERY_SEC <= now:
                sender.produce(OBSERVATIONS.name, made.record(LIVE_ROWS), b"bench", partition=0)
                sent.append(started + len(sent) * LIVE_EVERY_SEC)
            sender.poll(0)
            found = visible() // LIVE_ROWS
            seen = time.monotonic()
            histogram.add((seen - due) * 1000 for due in sent[shown:found])
            shown = max(shown, found)
            sink.check()
            if seen > started + LIVE_SEC + 60:
                raise StageFailed(f"{batches - shown} of {batches} batches are not visible after a minute")
            time.sleep(0.005)
    return histogram
