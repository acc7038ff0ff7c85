"""`tidemill bench throughput`: a backlog, as fast as it goes; the limit loop and the peers read the same backlog in turns.

Each turn: (1) the gateway alone over a fresh backlog; (2) the limit loop and each peer over the same records; (3) everything over another
fresh backlog, until the last row is visible in ClickHouse, with sink and worker (metrics, drift) running (`benchmarks.serving`).
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np
from confluent_kafka import TopicPartition

from benchmarks import peering, serving
from benchmarks.deploy import deploy
from benchmarks.limit import GROUP as LIMIT_GROUP
from benchmarks.limit import Observed, Plan, Tensor
from benchmarks.load import TIMES, Backlog, Bodies, Format, bodies, request_topic
from benchmarks.meter import Committed, Run, StageFailed, watch
from benchmarks.options import FORMAT, JSON, SUBJECT, TURNS, quick_is, seed_of
from benchmarks.report import Line, Result, in_turns, median, progress, ratio, show
from benchmarks.sample import sample
from benchmarks.serving import Turns
from benchmarks.stages import Bench, Running, bench, running, start_group
from benchmarks.warm import warm
from features.encode import encode
from inference.model import batch_rows
from runtime.artifacts import ArtifactStore
from runtime.kafka import consumer
from schemas.arrow import decode_batch
from schemas.spec import ModelSpec, load_spec
from schemas.tensors import input_tensors
from schemas.topics import OBSERVATIONS, PREDICTIONS

ROWS: Final = {"floats_8": 600_000, "floats_20": 400_000, "floats_784": 60_000, "text_4k": 20_000}
WARM_ROWS: Final = {"floats_8": 600_000, "floats_20": 400_000, "floats_784": 60_000, "text_4k": 5_000}
QUICK: Final = 3
"""`--quick` divides the rows by this."""
SAMPLED_RECORDS: Final = 8192
LIMIT_PREDICTIONS: Final = "bench-limit-predictions"
LIMIT_OBSERVATIONS: Final = "bench-limit-observations"


@click.command()
@SUBJECT
@FORMAT
@click.option(
    "--stage",
    type=click.Choice(("all", "gateway", "end-to-end")),
    default="all",
    show_default=True,
    help="What is measured of ours.",
)
@click.option("--rows", type=click.IntRange(min=1000), help="Rows of a backlog.")
@click.option(
    "--gateways", type=click.IntRange(1, 2), default=1, show_default=True, help="Gateway processes."
)
@TURNS
@click.option(
    "--peers/--no-peers",
    "with_peers",
    default=True,
    help="Measure the peers too (sets up their environment).",
)
@seed_of()
@quick_is("One turn, a third of the rows, no peers")
@JSON
def command(
    subject: str, kind: Format, stage: str, rows: int | None, gateways: int, turns: int, with_peers: bool, seed: int,
    quick: bool, as_json: bool,
) -> None:  # fmt: skip
    """Predictions per second from a backlog: the gateway alone, and end to end into ClickHouse."""
    if quick:
        turns, with_peers = 1, False
    rows = rows or default_rows(subject, kind, quick)
    found = measure(subject, kind, stage, rows, gateways, turns, with_peers, seed, quick)
    show(found._replace(quick=quick), as_json)


def default_rows(subject: str, kind: Format, quick: bool) -> int:
    """Rows of a backlog, where nobody says how many."""
    return ROWS[subject] * TIMES[kind] // (QUICK if quick else 1)


def measure(
    subject: str, kind: Format, stage: str, rows: int, gateways: int, turns: int, with_peers: bool, seed: int,
    quick: bool,
) -> Result:  # fmt: skip
    """Run all turns and sum up."""
    found = Turns()
    missing: dict[str, str] = {}
    with bench([subject]) as at:
        spec = load_spec(at.settings.models_dir / subject)
        artifact = deploy(at.settings, subject, seed=seed)
        pool = bodies(spec, kind, seed)
        at.create_topics([LIMIT_PREDICTIONS, LIMIT_OBSERVATIONS])
        python = _peers_python(subject, kind, missing) if with_peers and stage != "end-to-end" else None
        progress("warming")
        warm_rows = min(rows, WARM_ROWS[subject])
        warm(at, lambda: serving.alone(at, spec, pool, warm_rows, gateways, 0, Turns()), once=quick)
        for turn in range(1, turns + 1):
            progress(f"turn {turn} of {turns}")
            if stage != "end-to-end":
                backlog = serving.alone(at, spec, pool, rows, gateways, turn, found)
                found.add(turn, "limit", _limit(at, spec, artifact, pool, kind, backlog))
                if python is not None:
                    _peers(at, python, artifact, backlog, turn, found, missing)
            if stage != "gateway":
                serving.end_to_end(at, spec, pool, rows, gateways, turn, found)
    return _result(subject, kind, pool, rows, gateways, turns, seed, found, missing)


def _limit(at: Bench, spec: ModelSpec, artifact: str, pool: Bodies, kind: Format, backlog: Backlog) -> Run:
    progress("the limit loop over the same records")
    plan = _limit_plan(at, spec, artifact, pool, kind)
    file = at.folder / "limit.msgpack"
    file.write_bytes(msgspec.msgpack.encode(plan))
    start_group(at, LIMIT_GROUP, backlog)
    command = [sys.executable, "-P", "-m", "benchmarks.limit", str(file)]
    process = Running("limit", command, at.settings.environment() | {"OMP_NUM_THREADS": "1"}, at.folder)
    with running(process), closing(Committed(at.settings, LIMIT_GROUP, backlog)) as committed:
        run = watch(
            committed, backlog.records, {"limit": process.pid} | at.pids(), rows_per_record=backlog.rows_per_record,
            alive=process.check,
        )  # fmt: skip
    progress(f"    {run.rows_per_sec:,.0f} rows/s")
    return run


def _peers_python(subject: str, kind: Format, missing: dict[str, str]) -> Path | None:
    """The peers' interpreter; None, and in `missing` why, where there are none to measure."""
    reason = "peers are measured on 8 floats as JSON only" if (subject, kind) != ("floats_8", "json") else ""
    if not reason:
        try:
            return peering.interpreter()
        except StageFailed as error:
            reason = str(error)
    missing |= {peer.name: reason for peer in peering.PEERS}
    return None


def _peers(
    at: Bench, python: Path, artifact: str, backlog: Backlog, turn: int, found: Turns, missing: dict[str, str]
) -> None:
    for peer in peering.PEERS:
        progress(peer.name)
        try:
            run = peering.measure(at, peer, python, artifact, backlog)
        except StageFailed as error:
            missing[peer.name] = f"turn {turn}: {error}"
            progress(f"    {error}")
        else:
            found.add(turn, peer.name, run)
            progress(f"    {run.rows_per_sec:,.0f} rows/s")


def _limit_plan(at: Bench, spec: ModelSpec, artifact: str, pool: Bodies, kind: Format) -> Plan:
    """Constant tensors of a full micro-batch, and the bytes that the gateway wrote last."""
    state = ArtifactStore(at.settings.artifacts_dir).open(spec.name, artifact).features
    batch_records = max(1, batch_rows(spec) // pool.rows_per_record)
    columns = sample(spec, batch_records * pool.rows_per_record, np.random.default_rng(0))
    arrays = encode(spec, state, columns)
    tensors = [
        Tensor(
            t.name, t.datatype, list(arrays[t.name].shape), arrays[t.name].dtype.str, arrays[t.name].tobytes()
        )
        for t in input_tensors(spec)
    ]
    return Plan(
        requests=request_topic(spec.name), predictions=LIMIT_PREDICTIONS, observations=LIMIT_OBSERVATIONS,
        model=spec.name, artifact=artifact, batch_records=batch_records, rows_per_record=pool.rows_per_record, tensors=tensors,
        prediction_values=_newest(at, PREDICTIONS.for_model(spec.name), SAMPLED_RECORDS),
        prediction_headers=[] if kind == "json" else list(pool.headers),
        observed=[
            Observed(value, decode_batch(value).num_rows) for value in _newest(at, OBSERVATIONS.name, 8)
        ],
    )  # fmt: skip


def _newest(at: Bench, topic: str, count: int) -> list[bytes]:
    """Values of about the last `count` committed records of each partition."""
    client = consumer(at.settings, "bench-newest")
    try:
        places = [
            TopicPartition(topic, p) for p in client.list_topics(topic, timeout=10).topics[topic].partitions
        ]
        for place in places:
            low, high = client.get_watermark_offsets(place, timeout=10, cached=False)
            place.offset = max(
                low, high - count - count // 8 - 4
            )  # the markers of transactions take offsets too
        client.assign(places)
        values: list[bytes] = []
        while messages := client.consume(count, 1.0):
            values += [message.value() or b"" for message in messages if message.error() is None]
        if not values:
            raise StageFailed(f"{topic} holds nothing that the limit loop could write")
        return values
    finally:
        client.close()


def _result(
    subject: str, kind: Format, pool: Bodies, rows: int, gateways: int, turns: int, seed: int, found: Turns,
    missing: dict[str, str],
) -> Result:  # fmt: skip
    per_sec = found.per_sec
    ours, end_to_end, limit = (per_sec.get(name, {}) for name in ("gateway", "end to end", "limit"))
    spent = [values for name, values in found.cpu_us.items() if name.startswith("gateway: gateway")]
    figures: dict[str, Any] = {
        "subject": subject, "format": kind, "rows": rows, "gateways": gateways,
        "record_bytes": round(pool.record_bytes, 1), "rows_per_record": pool.rows_per_record,
        "events_per_s": median(end_to_end.values()),
        "gateway_events_per_s": median(ours.values()),
        "gateway_cpu_us_per_record": median(sum(values[turn] for values in spent) for turn in ours),
        "limit_events_per_s": median(limit.values()),
        "ratio_to_limit": ratio(in_turns(ours, limit)),
        "end_to_end_ratio_to_limit": ratio(in_turns(end_to_end, limit)),
    }  # fmt: skip
    for peer in peering.PEERS:
        figures[f"ratio_to_{peer.key}"] = ratio(in_turns(ours, per_sec.get(peer.name, {})))
    sizes = {name: values for name, values in found.rss_mb.items() if ": gateway" in name}
    figures["gateway_mb_max"] = max((mb for values in sizes.values() for mb in values.values()), default=None)
    figures["not_measured"] = missing
    lines = [Line(stage, list(values.values()), "rows/s") for stage, values in per_sec.items()]
    lines += [
        Line(f"busy with others during: {stage}", list(values.values()), "cores")
        for stage, values in found.others.items()
    ]
    lines += [Line(f"CPU {name}", list(values.values()), "µs/row") for name, values in found.cpu_us.items()]
    lines += [Line(f"memory {name}", list(values.values()), "MB") for name, values in sizes.items()]
    return Result("throughput", figures, lines, seed, turns)
