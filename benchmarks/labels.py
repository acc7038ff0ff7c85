"""`tidemill bench labels`: feedback joined per second, against ten million predictions that ClickHouse holds.

The predictions are put there by SQL, as the sink would have, ids and all; each label names one of them at random, so nothing is near another.
Beside it a loop that only asks ClickHouse the same two questions, of as many other labels, in batches as large: it reads no feedback, makes no
outcomes and writes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Final

import click
import numpy as np
from clickhouse_connect.driver.client import Client

from benchmarks.deploy import deploy
from benchmarks.load import Bodies, produce_backlog
from benchmarks.meter import Committed, StageFailed, count, watch
from benchmarks.options import JSON, TURNS, quick_is, seed_of
from benchmarks.report import Line, Result, median, progress, ratio, show
from benchmarks.stages import Service, bench, running
from schemas.topics import FEEDBACK
from streams.labels.loop import BATCH_RECORDS
from streams.labels.loop import NAME as GROUP
from warehouse import lookups

MODEL: Final = "floats_8"
PREDICTIONS: Final = 10_000_000
QUICK_PREDICTIONS: Final = 1_000_000
LABELS: Final = 400_000
QUICK_LABELS: Final = 150_000
STEP_ROWS: Final = 1_000_000

# A version 7 UUID as schemas.identity lays it out: 48 bits of time, then bits of a hash; UUIDs compare in ClickHouse by their second half.
LOAD: Final = """
INSERT INTO internal.observations
    (prediction_id, model, entity, role, arm, version, propensity, status, requested_at, observed_at, label, score, scores, numbers)
SELECT
    toUUID(concat(
        substring(hex(at_ms), 1, 8), '-', substring(hex(at_ms), 9, 4), '-7', substring(random, 1, 3), '-a', substring(random, 4, 3), '-',
        substring(random, 7, 12)
    )),
    {model:String}, concat('entity-', toString(number % 100000)), 'live', 'champion', '1.0', 1, 'answered',
    fromUnixTimestamp64Milli(at_ms, 'UTC'), fromUnixTimestamp64Milli(at_ms, 'UTC'), 'yes', 0.75, [0.25, 0.75], arrayWithConstant(8, toFloat32(0.5))
FROM (
    SELECT number, toInt64({start_ms:Int64} + intDiv(number, 10)) AS at_ms, hex(sipHash128(number, {seed:UInt64})) AS random
    FROM numbers({first:UInt64}, {rows:UInt64})
)
"""


@click.command()
@click.option(
    "--predictions",
    type=click.IntRange(min=10_000),
    help=f"Predictions in ClickHouse.  [default: {PREDICTIONS:,}]",
)
@click.option("--labels", type=click.IntRange(min=1000), help=f"Labels of a turn.  [default: {LABELS:,}]")
@TURNS
@seed_of("ids and labels")
@quick_is("One turn, fewer predictions and labels")
@JSON
def command(
    predictions: int | None, labels: int | None, turns: int, seed: int, quick: bool, as_json: bool
) -> None:
    """Labels joined with predictions per second."""
    predictions = predictions or (QUICK_PREDICTIONS if quick else PREDICTIONS)
    labels = labels or (QUICK_LABELS if quick else LABELS)
    found = measure(predictions, labels, 1 if quick else turns, seed)
    show(found._replace(quick=quick), as_json)


def measure(predictions: int, labels: int, turns: int, seed: int) -> Result:
    """Load the predictions, then turns of a backlog of labels, and of the look-ups alone."""
    per_sec: list[float] = []
    alone: list[float] = []
    cpu: dict[str, list[float]] = {"labels": [], "clickhouse": [], "kafka": []}
    labelled: set[str] = set()
    with bench([MODEL]) as at, at.clickhouse() as client:
        deploy(at.settings, MODEL, seed=seed)
        _load(client, predictions, seed)
        sink = Service(at, "sink")
        with running(sink):
            sink.wait_ready()
            for turn in range(turns):
                progress(f"turn {turn + 1} of {turns}: {labels:,} labels")
                alone.append(_look_ups(client, _chosen(client, labels, seed + turns + turn)))
                progress(f"    {alone[-1]:,.0f} labels/s by the look-ups alone")
                ids = _chosen(client, labels, seed + turn)
                labelled.update(ids)
                pool = _labels(ids, seed + turn)
                backlog = produce_backlog(at.settings, FEEDBACK.for_model(MODEL), pool, labels)
                stage = Service(at, "labels")
                with running(stage), closing(Committed(at.settings, GROUP, backlog)) as committed:
                    run = watch(
                        committed,
                        backlog.records,
                        {"labels": stage.pid, "sink": sink.pid} | at.pids(),
                        alive=stage.check,
                    )
                per_sec.append(run.rows_per_sec)
                for name, values in cpu.items():
                    values.append(run.cpu_us_per_row(name))
                progress(f"    {run.rows_per_sec:,.0f} labels/s")
        _check(client, len(labelled))
    figures: dict[str, Any] = {
        "labels_per_s": median(per_sec),
        "lookups_per_s": median(alone),
        "ratio_to_lookups": ratio(zip(per_sec, alone, strict=True)),
        "predictions": predictions,
        "labels": labels,
        "cpu_us_per_label": {name: median(values) for name, values in cpu.items()},
    }
    lines = [
        Line("labels joined", per_sec, "labels/s"),
        Line("the look-ups alone", alone, "labels/s", "nothing read, joined or written"),
    ]
    lines += [Line(f"CPU {name}", values, "µs/label") for name, values in cpu.items()]
    return Result("labels", figures, lines, seed, turns)


def _load(client: Client, predictions: int, seed: int) -> None:
    start_ms = time.time_ns() // 1_000_000 - predictions // 10 - 60_000
    for first in range(0, predictions, STEP_ROWS):
        progress(f"predictions into ClickHouse: {first:,} of {predictions:,}")
        client.command(
            LOAD,
            {
                "model": MODEL,
                "start_ms": start_ms,
                "seed": seed,
                "first": first,
                "rows": min(STEP_ROWS, predictions - first),
            },
        )
    found = count(client, "SELECT count() FROM internal.prediction_lookup")
    if found != predictions:
        raise StageFailed(f"{predictions:,} predictions were loaded and {found:,} can be looked up")


def _chosen(client: Client, labels: int, seed: int) -> list[str]:
    """Ids of `labels` different predictions, in no order."""
    found = client.query(
        "SELECT toString(prediction_id) FROM internal.prediction_lookup ORDER BY sipHash64(prediction_id, {seed:UInt64}) LIMIT {count:UInt64}",
        {"seed": seed, "count": labels},
    )
    return [row[0] for row in found.result_rows]


def _labels(ids: Sequence[str], seed: int) -> Bodies:
    """A label of each."""
    answers = np.random.default_rng(seed).choice(["no", "yes"], len(ids)).tolist()
    values = [
        json.dumps({"kind": "label", "prediction_id": each, "value": answer}).encode()
        for each, answer in zip(ids, answers, strict=True)
    ]
    return Bodies(values, 1, [("content-type", b"application/json")])


def _look_ups(client: Client, ids: Sequence[str]) -> float:
    """Labels a second, if asking were all."""
    started = time.monotonic()
    for first in range(0, len(ids), BATCH_RECORDS):
        batch = ids[first : first + BATCH_RECORDS]
        found = lookups.predictions(client, MODEL, batch)
        lookups.newest_labels(client, MODEL, batch)
        if found.num_rows != len(batch):
            raise StageFailed(f"{len(batch):,} predictions were looked up and {found.num_rows:,} found")
    return len(ids) / (time.monotonic() - started)


def _check(client: Client, labelled: int) -> None:
    """Every prediction that was labelled has an outcome, and no other. Raises `StageFailed`."""
    deadline = time.monotonic() + 30
    while (found := count(client, "SELECT uniqExact(prediction_id) FROM internal.outcomes")) != labelled:
        if time.monotonic() > deadline:
            raise StageFailed(f"{found:,} predictions have an outcome, and {labelled:,} were labelled")
        time.sleep(0.2)
