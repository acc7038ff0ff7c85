"""`tidemill bench processors`: metrics and drift over 20 features, in rows per second of the worker; beside river, one row at a time.

river does per row what the worker's histograms and sums do per batch: `sketch.Histogram` for each feature and the score, `stats.Mean` of
the score. It reads no Kafka, decodes no Arrow and writes nothing, all of which the worker's figure has in it. So the worker's measuring stands
beside it alone, too: the same code over the same batches, in this process.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any, Final

import click
import pyarrow as pa
from river import sketch, stats

from benchmarks.deploy import deploy
from benchmarks.ingest import produce_batches
from benchmarks.meter import Committed, watch
from benchmarks.observed import Observed
from benchmarks.options import BATCH_ROWS, JSON, TURNS, quick_is, seed_of
from benchmarks.report import Line, Result, median, progress, ratio, show
from benchmarks.stages import Service, bench, running
from schemas.arrow import encode_batch
from schemas.spec import load_spec
from schemas.topics import OBSERVATIONS
from streams.worker.app import GROUP
from streams.worker.measure import Measure
from streams.worker.models import Models

MODEL: Final = "floats_20"
ROWS: Final = 12_000_000
"""What a worker has measured is seen when it saves, which is every second or two: fewer rows would be one or two saves."""
QUICK_ROWS: Final = 4_000_000
DISTINCT_ROWS: Final = 200_000
RIVER_ROWS: Final = 20_000
RIVER_BATCH_ROWS: Final = 1000


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
    """Rows per second of metrics and drift."""
    found = measure(rows or (QUICK_ROWS if quick else ROWS), batch_rows, 1 if quick else turns, seed)
    show(found._replace(quick=quick), as_json)


def measure(rows: int, batch_rows: int | None, turns: int, seed: int) -> Result:
    """Turns of the worker over a backlog, and of river."""
    ours: list[float] = []
    river_rows: list[float] = []
    river_cpu_us: list[float] = []
    cpu_us: list[float] = []
    measuring_us: list[float] = []
    with bench([MODEL]) as at:
        spec = load_spec(at.settings.models_dir / MODEL)
        batch_rows = batch_rows or spec.serve.max_batch_rows
        deploy(at.settings, MODEL, seed=seed)
        made = Observed(spec, "1.0", seed)
        for turn in range(turns):
            progress(f"turn {turn + 1} of {turns}: river, one row at a time")
            per_sec, spent_us = _river(made)
            river_rows.append(per_sec)
            river_cpu_us.append(spent_us)
            progress(f"    {river_rows[-1]:,.0f} rows/s")
            # The worker does not look at ids: the same batches may come again.
            batches = [made.batch(batch_rows) for _ in range(max(1, min(DISTINCT_ROWS, rows) // batch_rows))]
            progress(f"turn {turn + 1} of {turns}: the worker's measuring alone")
            measuring_us.append(_measuring(Models(at.settings), batches))
            progress(f"    {measuring_us[-1]:.2f} µs of CPU a row")
            times = max(1, rows // batch_rows // len(batches))
            progress(
                f"turn {turn + 1} of {turns}: the worker over {times * len(batches) * batch_rows:,} rows"
            )
            backlog = produce_batches(at.settings, batches * times)
            worker = Service(at, "worker")
            with running(worker), closing(Committed(at.settings, GROUP, backlog)) as committed:
                run = watch(
                    committed, backlog.records, {"worker": worker.pid} | at.pids(), rows_per_record=batch_rows,
                    alive=worker.check,
                )  # fmt: skip
            ours.append(run.rows_per_sec)
            cpu_us.append(run.cpu_us_per_row("worker"))
            progress(f"    {run.rows_per_sec:,.0f} rows/s")
    figures: dict[str, Any] = {
        "batch_rows": batch_rows,
        "rows_per_s": median(ours),
        "river_rows_per_s": median(river_rows),
        "ratio_to_river": ratio(zip(ours, river_rows, strict=True)),
        "worker_cpu_us_per_row": median(cpu_us),
        "measuring_cpu_us_per_row": median(measuring_us),
        "rows_per_cpu_s": median(1e6 / each for each in cpu_us),
        "ratio_to_river_by_cpu": ratio(zip(river_cpu_us, cpu_us, strict=True)),
        "measuring_ratio_to_river_by_cpu": ratio(zip(river_cpu_us, measuring_us, strict=True)),
    }
    lines = [
        Line("worker, metrics and drift", ours, "rows/s"),
        Line("river, one row at a time", river_rows, "rows/s"),
        Line("CPU worker", cpu_us, "µs/row"),
        Line("CPU worker, measuring alone", measuring_us, "µs/row"),
        Line("CPU river", river_cpu_us, "µs/row"),
    ]
    return Result("processors", figures, lines, seed, turns)


def _measuring(models: Models, batches: list[pa.RecordBatch]) -> float:
    """Microseconds of CPU a row, from a record's value to the partial sums, without Kafka."""
    measure, values = Measure(models, OBSERVATIONS.name, 0), [encode_batch(batch) for batch in batches]
    started = time.process_time()
    for value in values:
        measure.apply(value)
    measure.drain(len(values))
    return (time.process_time() - started) / sum(map(len, batches)) * 1e6


def _river(made: Observed) -> tuple[float, float]:
    """Rows per second, and microseconds of CPU a row."""
    batch = made.batch(RIVER_BATCH_ROWS)
    numbers = batch["numbers"].to_pylist()
    score = batch["score"].to_pylist()
    histogram_of: Any = sketch.Histogram
    histograms = [histogram_of(max_bins=10) for _ in range(len(numbers[0]) + 1)]
    mean: Any = stats.Mean()
    started, cpu_started, done = time.perf_counter(), time.process_time(), 0
    while done < RIVER_ROWS:
        for row, value in zip(numbers, score, strict=True):
            for histogram, number in zip(histograms, (*row, value), strict=True):
                histogram.update(number)
            mean.update(value)
        done += len(numbers)
    return done / (time.perf_counter() - started), (time.process_time() - cpu_started) / done * 1e6
