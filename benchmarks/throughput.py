"""`tidemill bench throughput`: a backlog, as fast as it goes; the limit loop and the peers read the same backlog in turns.

Each turn: (1) the gateway alone over a fresh backlog; (2) the limit loop and each peer over the same records; (3) everything over another
fresh backlog, until the last row is visible in ClickHouse, with sink and worker (metrics, drift) running.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np
from confluent_kafka import TopicPartition

from benchmarks import peering
from benchmarks.deploy import deploy, sample
from benchmarks.limit import GROUP as LIMIT_GROUP
from benchmarks.limit import Plan, Tensor
from benchmarks.load import FORMATS, Backlog, Bodies, Format, bodies, produce_backlog, request_topic
from benchmarks.meter import Committed, Run, StageFailed, Visible, watch
from benchmarks.report import Line, Result, median, progress, ratio, show
from benchmarks.stages import Bench, Running, Service, bench, running, start_group
from benchmarks.subject import SUBJECTS
from features.encode import encode
from inference.source import GROUP as GATEWAY_GROUP
from runtime.artifacts import ArtifactStore
from runtime.kafka import consumer
from schemas.spec import ModelSpec, load_spec
from schemas.tensors import input_tensors
from schemas.topics import OBSERVATIONS, PREDICTIONS
from warehouse.client import connect

ROWS: Final = {"floats_8": 600_000, "floats_20": 400_000, "floats_784": 60_000, "text_4k": 20_000}
WARM_ROWS: Final = {"floats_8": 300_000, "floats_20": 200_000, "floats_784": 20_000, "text_4k": 5_000}
QUICK: Final = 3
"""`--quick` divides the rows by this."""
SAMPLED_RECORDS: Final = 8192
LIMIT_PREDICTIONS: Final = "bench-limit-predictions"
LIMIT_OBSERVATIONS: Final = "bench-limit-observations"


@dataclass
class Turns:
    """What was measured so far, a list over turns by name."""

    per_sec: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu_us: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    others: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rss_mb: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, stage: str, run: Run, cpu: bool = True) -> None:
        self.per_sec[stage].append(run.rows_per_sec)
        self.others[stage].append(run.others_cores)
        for name, size in run.rss_bytes.items():
            self.rss_mb[f"{stage}: {name}"].append(size / 1e6)
        for name in run.cpu_sec if cpu else ():
            self.cpu_us[f"{stage}: {name}"].append(run.cpu_us_per_row(name))


@click.command()
@click.option(
    "--subject",
    type=click.Choice(list(SUBJECTS)),
    default="floats_8",
    show_default=True,
    help="What a request holds.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="json",
    show_default=True,
    help="How it is encoded.",
)
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
@click.option(
    "--turns",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Turns, of which the median counts.",
)
@click.option(
    "--peers/--no-peers",
    "with_peers",
    default=True,
    help="Measure the peers too (sets up their environment).",
)
@click.option("--seed", default=0, show_default=True, help="Of the requests and the weights.")
@click.option("--quick", is_flag=True, help="One turn, a third of the rows, no peers.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON object, in the last line."
)
def command(
    subject: str, kind: Format, stage: str, rows: int | None, gateways: int, turns: int, with_peers: bool, seed: int,
    quick: bool, as_json: bool,
) -> None:  # fmt: skip
    """Predictions per second from a backlog: the gateway alone, and end to end into ClickHouse."""
    if quick:
        turns, with_peers = 1, False
    rows = rows or ROWS[subject] // (QUICK if quick else 1)
    show(measure(subject, kind, stage, rows, gateways, turns, with_peers, seed), as_json)


def measure(
    subject: str, kind: Format, stage: str, rows: int, gateways: int, turns: int, with_peers: bool, seed: int
) -> Result:
    """Run all turns and sum up."""
    found = Turns()
    missing: dict[str, str] = {}
    with bench([subject]) as at:
        spec = load_spec(at.settings.models_dir / subject)
        artifact = deploy(at.settings, subject, seed=seed)
        pool = bodies(spec, kind, seed)
        at.create_topics([LIMIT_PREDICTIONS, LIMIT_OBSERVATIONS])
        python = _peers_python(subject, kind, missing) if with_peers and stage != "end-to-end" else None
        progress("warming: the broker's compiler needs some hundred thousand records")
        _alone(at, spec, pool, min(rows, WARM_ROWS[subject]), gateways, Turns())
        for turn in range(turns):
            progress(f"turn {turn + 1} of {turns}")
            if stage != "end-to-end":
                backlog = _alone(at, spec, pool, rows, gateways, found)
                _limit(at, spec, artifact, pool, kind, backlog, found)
                if python is not None:
                    _peers(at, python, artifact, backlog, found, missing)
            if stage != "gateway":
                _end_to_end(at, spec, pool, rows, gateways, found)
    return _result(subject, kind, pool, rows, gateways, turns, seed, found, missing)


def _alone(at: Bench, spec: ModelSpec, pool: Bodies, rows: int, gateways: int, found: Turns) -> Backlog:
    progress(f"the gateway alone, {rows:,} rows")
    backlog = produce_backlog(at.settings, request_topic(spec.name), pool, rows)
    at_work = [Service(at, "gateway", slot) for slot in range(gateways)]
    progress_of = Committed(at.settings, GATEWAY_GROUP, backlog)
    with running(*at_work):
        run = watch(
            progress_of, backlog.records, {service.name: service.pid for service in at_work} | at.pids(),
            rows_per_record=backlog.rows_per_record, alive=_checks(at_work),
        )  # fmt: skip
    progress_of.close()
    found.add("gateway", run)
    progress(f"    {run.rows_per_sec:,.0f} rows/s")
    return backlog


def _limit(
    at: Bench, spec: ModelSpec, artifact: str, pool: Bodies, kind: Format, backlog: Backlog, found: Turns
) -> None:  # fmt: skip
    progress("the limit loop over the same records")
    plan = limit_plan(at, spec, artifact, pool, kind)
    file = at.folder / "limit.msgpack"
    file.write_bytes(msgspec.msgpack.encode(plan))
    run = follow_group(at, "limit", "benchmarks.limit", [str(file)], LIMIT_GROUP, backlog)
    found.add("limit", run)
    progress(f"    {run.rows_per_sec:,.0f} rows/s")


def follow_group(
    at: Bench, name: str, module: str, arguments: list[str], group: str, backlog: Backlog
) -> Run:
    """Run `python -m module` over a backlog from its start, by the offsets that its group commits."""
    start_group(at, group, backlog)
    process = Running(
        name, _python(module, *arguments), at.settings.environment() | {"OMP_NUM_THREADS": "1"}, at.folder
    )
    progress_of = Committed(at.settings, group, backlog)
    with running(process):
        run = watch(
            progress_of, backlog.records, {name: process.pid} | at.pids(), rows_per_record=backlog.rows_per_record,
            alive=process.check,
        )  # fmt: skip
    progress_of.close()
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
    at: Bench, python: Path, artifact: str, backlog: Backlog, found: Turns, missing: dict[str, str]
) -> None:
    for peer in peering.PEERS:
        progress(peer.name)
        try:
            run = peering.measure(at, peer, python, artifact, backlog)
        except StageFailed as error:
            missing[peer.name] = str(error)
            progress(f"    {error}")
        else:
            found.add(peer.name, run)
            progress(f"    {run.rows_per_sec:,.0f} rows/s")


def _end_to_end(at: Bench, spec: ModelSpec, pool: Bodies, rows: int, gateways: int, found: Turns) -> None:
    progress(f"end to end into ClickHouse, {rows:,} rows")
    client = connect(at.settings.clickhouse_url, at.settings.clickhouse_user, at.settings.clickhouse_password)
    behind = [Service(at, "sink"), Service(at, "worker")]
    with running(*behind):
        for service in behind:
            service.wait_ready()
        settle(at, client, spec.name)
        backlog = produce_backlog(at.settings, request_topic(spec.name), pool, rows)
        answered, visible = Committed(at.settings, GATEWAY_GROUP, backlog), Visible(client, spec.name)
        at_work = [Service(at, "gateway", slot) for slot in range(gateways)]
        everything = [*at_work, *behind]
        with running(*at_work):
            run = watch(
                visible, backlog.rows, {service.name: service.pid for service in everything} | at.pids(),
                begun=answered, alive=_checks(everything),
            )  # fmt: skip
        answered.close()
    client.close()
    found.add("end to end", run)
    progress(f"    {run.rows_per_sec:,.0f} rows/s")


def settle(at: Bench, client: Any, model: str, timeout_sec: float = 120.0) -> None:
    """Wait until sink and worker have taken up what earlier stages left behind.

    Raises:
        StageFailed: they have not.
    """
    wait_for_lag(at, {"sink": [OBSERVATIONS.name], "worker": [OBSERVATIONS.name]}, timeout_sec)


def wait_for_lag(at: Bench, groups: dict[str, list[str]], timeout_sec: float) -> None:
    """Wait until each group has committed all of its topics, but for the markers of transactions."""
    deadline = time.monotonic() + timeout_sec
    for group, topics in groups.items():
        client = consumer(at.settings, group)
        try:
            for topic in topics:
                places = [
                    TopicPartition(topic, p)
                    for p in client.list_topics(topic, timeout=10).topics[topic].partitions
                ]
                while True:
                    committed = client.committed(places, timeout=10)
                    highs = [
                        client.get_watermark_offsets(place, timeout=10, cached=False) for place in places
                    ]
                    # A marker follows the last record; an offset that stays one or two before the end is at the end.
                    behind = [
                        high - max(place.offset, low)
                        for place, (low, high) in zip(committed, highs, strict=True)
                    ]
                    if max(behind) <= 2:
                        break
                    if time.monotonic() > deadline:
                        raise StageFailed(
                            f"{group} is {max(behind)} offsets behind on {topic} after {timeout_sec:.0f} s"
                        )
                    time.sleep(0.1)
        finally:
            client.close()


def limit_plan(at: Bench, spec: ModelSpec, artifact: str, pool: Bodies, kind: Format) -> Plan:
    """Constant tensors of a full micro-batch, and the bytes that the gateway wrote last."""
    state = ArtifactStore(at.settings.artifacts_dir).open(spec.name, artifact).features
    batch_records = max(1, spec.serve.max_batch_rows // pool.rows_per_record)
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
        model=spec.name, artifact=artifact, batch_records=batch_records, tensors=tensors,
        prediction_values=_newest(at, PREDICTIONS.for_model(spec.name), SAMPLED_RECORDS),
        prediction_headers=[] if kind == "json" else list(pool.headers),
        observation_values=_newest(at, OBSERVATIONS.name, 8),
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


def _checks(services: list[Service]) -> Any:
    def check() -> None:
        for service in services:
            service.check()

    return check


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *arguments]


def _result(
    subject: str, kind: Format, pool: Bodies, rows: int, gateways: int, turns: int, seed: int, found: Turns,
    missing: dict[str, str],
) -> Result:  # fmt: skip
    per_sec = found.per_sec
    ours = per_sec.get("gateway", [])
    end_to_end = per_sec.get("end to end", [])
    gateway_cpu = [
        sum(values)
        for values in zip(
            *(v for name, v in found.cpu_us.items() if name.startswith("gateway: gateway")), strict=True
        )
    ]
    figures: dict[str, Any] = {
        "subject": subject, "format": kind, "rows": rows, "gateways": gateways,
        "record_bytes": round(pool.record_bytes, 1), "rows_per_record": pool.rows_per_record,
        "events_per_s": median(end_to_end),
        "gateway_events_per_s": median(ours),
        "gateway_cpu_us_per_record": median(gateway_cpu),
        "limit_events_per_s": median(per_sec.get("limit", [])),
        "ratio_to_limit": ratio(ours, per_sec.get("limit", [])),
        "end_to_end_ratio_to_limit": ratio(end_to_end, per_sec.get("limit", [])),
    }  # fmt: skip
    for peer in peering.PEERS:
        figures[f"ratio_to_{peer.key}"] = ratio(ours, per_sec.get(peer.name, []))
    figures["not_measured"] = missing
    lines = [Line(stage, values, "rows/s") for stage, values in per_sec.items()]
    lines += [
        Line(f"busy with others during: {stage}", values, "cores") for stage, values in found.others.items()
    ]
    lines += [Line(f"CPU {name}", values, "µs/row") for name, values in found.cpu_us.items()]
    lines += [
        Line(f"memory {name}", values, "MB") for name, values in found.rss_mb.items() if ": gateway" in name
    ]
    return Result("throughput", figures, lines, seed, turns)
