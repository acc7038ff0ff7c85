"""`tidemill bench latency`: from the time a request was due to the time a read-committed reader has its prediction.

Beside it, in the same run and with the same producer and reader, a transactional echo with offsets, which is Kafka's part, and Triton asked
directly for one row, which is the model's and is counted from the call. What is left over is ours.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final

import click
import numpy as np
from confluent_kafka import Consumer, TopicPartition
from tritonclient.grpc.aio import InferenceServerClient, InferInput, InferRequestedOutput

from benchmarks.deploy import deploy
from benchmarks.histogram import Histogram, sum_percentile_ms
from benchmarks.load import Bodies, HeldBacklog, bodies, ends, request_topic
from benchmarks.meter import Committed, StageFailed, wait_caught_up, wait_for, watch
from benchmarks.options import JSON, quick_is, seed_of
from benchmarks.pacing import Pacer
from benchmarks.report import Line, Result, median, progress, show
from benchmarks.sample import sample
from benchmarks.stages import Bench, Running, Service, bench, running, start_group_at
from benchmarks.warm import warm
from features.encode import encode
from inference.source import GROUP as GATEWAY_GROUP
from runtime.artifacts import ArtifactStore
from runtime.kafka import consumer
from schemas.spec import ModelSpec, load_spec
from schemas.tensors import ARTIFACT_PARAMETER, SCORES, input_tensors
from schemas.topics import PREDICTIONS

MODEL: Final = "floats_8"
RATES: Final = (100.0, 1000.0)
COMPARED: Final = 1000.0
SEC: Final = 10.0
QUICK_SEC: Final = 4.0
TURNS: Final = 3
WARM_SEC: Final = 3.0
BROKER_WARM_SEC: Final = 15.0
"""At `COMPARED`, until the broker is warm: before, a transaction takes it two to three times as long."""
ECHO: Final = "bench-echo"
"""Its topic of answers, its group, and its transactional id."""
ECHO_BYTES: Final = 160
READ_PER_SEC: Final = 5000
"""Of more answers than this in a second, the reader looks at a part: its own work would be what is measured."""
HIGHEST_ROWS: Final = 600_000
PERCENTS: Final = (50, 90, 99, 99.9)
ADDED_PERCENTS: Final = (50, 99)

Found = dict[tuple[str, float], list[Histogram]]
"""What and at which rate → its latencies in each turn."""


@click.command()
@click.option("--sec", default=SEC, show_default=True, help="Seconds at each rate.")
@click.option(
    "--turns",
    type=click.IntRange(min=1),
    default=TURNS,
    show_default=True,
    help="Turns, of which the median counts.",
)
@seed_of()
@quick_is("One turn of 4 seconds at each rate; without half of the highest rate")
@JSON
def command(sec: float, turns: int, seed: int, quick: bool, as_json: bool) -> None:
    """Latency from producer to prediction, open loop, beside a transactional echo and Triton alone."""
    found = measure(QUICK_SEC if quick else sec, 1 if quick else turns, seed, quick)
    show(found._replace(quick=quick), as_json)


def measure(sec: float, turns: int, seed: int, quick: bool) -> Result:
    """In turns, each rate: ours, the echo, Triton."""
    found: Found = defaultdict(list)
    late_ms: dict[str, float] = defaultdict(float)

    def add(what: str, rate: float, measured: tuple[Histogram, float]) -> None:
        found[what, rate].append(measured[0])
        name = f"{what} at {rate:g}/s"
        late_ms[name] = max(late_ms[name], measured[1])

    with bench([MODEL]) as at:
        spec = load_spec(at.settings.models_dir / MODEL)
        artifact = deploy(at.settings, MODEL, seed=seed)
        pool, requests = bodies(spec, "json", seed), request_topic(MODEL)
        answers = PREDICTIONS.for_model(MODEL)
        at.create_topics([ECHO])
        rates = [*RATES]
        highest = 0.0
        for turn in range(1, turns + 1):
            progress(f"turn {turn} of {turns}")
            gateway = Service(at, "gateway")
            with running(gateway):
                gateway.wait_ready()
                if turn == 1:
                    highest = _highest(at, pool, gateway)
                    if not quick:
                        rates.append(round(highest / 2, -2))
                # What the echo was asked in the turn before.
                wait_caught_up(at.settings, GATEWAY_GROUP, requests)
                if turn == 1:
                    progress(f"warming up the broker at {COMPARED:,.0f}/s")
                    warm(at, lambda: _through(at, pool, COMPARED, BROKER_WARM_SEC, answers), once=quick)
                for rate in rates:
                    progress(f"ours at {rate:,.0f}/s")
                    add("ours", rate, _through(at, pool, rate, sec, answers))
            start_group_at(at, ECHO, requests, ends(at.settings, requests))
            echo = [sys.executable, "-P", "-m", "benchmarks.echo", requests, ECHO, ECHO, str(ECHO_BYTES)]
            with running(Running("echo", echo, at.settings.environment(), at.folder)):
                for rate in rates:
                    progress(f"the echo at {rate:,.0f}/s")
                    add("echo", rate, _through(at, pool, rate, sec, ECHO))
            for rate in RATES:
                progress(f"Triton at {rate:,.0f}/s")
                add("triton", rate, asyncio.run(_triton(at, spec, artifact, rate, sec)))
    return _result(found, late_ms, highest, seed, turns)


def _highest(at: Bench, pool: Bodies, gateway: Service) -> float:
    """Predictions per second from a backlog. It also warms broker, gateway and model."""
    progress("the highest rate, from a backlog")
    backlog = HeldBacklog(at.settings, request_topic(MODEL), pool, HIGHEST_ROWS).release()
    with closing(Committed(at.settings, GATEWAY_GROUP, backlog)) as committed:
        run = watch(committed, backlog.records, {}, alive=gateway.check)
        wait_for(committed, backlog.records, "requests answered of the backlog", alive=gateway.check)
    return run.rows_per_sec


def _through(at: Bench, pool: Bodies, rate: float, sec: float, topic: str) -> tuple[Histogram, float]:
    """Send at `rate` and read the answers on `topic`; the latencies after `WARM_SEC`, and how late the producer was (ms)."""
    client = _reader(at, topic)
    count = int(rate * (WARM_SEC + sec))
    pace = Pacer(at, request_topic(MODEL), pool, rate, WARM_SEC + sec)
    try:
        histogram = _read(client, count, rate)
    finally:
        pace.end()
        client.close()
    return histogram, pace.latest_ms()


def _reader(at: Bench, topic: str) -> Consumer:
    """A read-committed reader from the end of `topic`, already there."""
    client = consumer(at.settings, "bench-latency")
    client.assign([TopicPartition(topic, p, offset) for p, offset in ends(at.settings, topic).items()])
    client.consume(1, 0.5)
    return client


def _read(client: Consumer, count: int, rate: float) -> Histogram:
    """Until `count` answers are there. Raises `StageFailed` if no more come."""
    histogram = Histogram()
    step = max(1, round(rate / READ_PER_SEC))
    seen, first_ns, quiet_since = 0, 0, time.monotonic()
    while seen < count:
        messages = client.consume(1, 0.05)
        messages += client.consume(2000, 0.0) if messages else []
        now_ns = time.monotonic_ns()
        if not messages:
            if time.monotonic() - quiet_since > 20:
                raise StageFailed(f"{seen} of {count} answers came, and none in the last 20 s")
            continue
        quiet_since = time.monotonic()
        # Of those that are left out none is chosen: every step-th is looked at.
        due = [int(message.key() or b"0") for message in messages[(-seen) % step :: step]]
        seen += len(messages)
        if due:
            first_ns = first_ns or due[0]
            warm_ns = first_ns + WARM_SEC * 1e9
            histogram.add((now_ns - each) / 1e6 for each in due if each >= warm_ns)
    return histogram


async def _triton(
    at: Bench, spec: ModelSpec, artifact: str, rate: float, sec: float
) -> tuple[Histogram, float]:
    """One row a call, open loop: the calls' latencies from when each was made, and how late the latest was made (ms).

    What the client's own timer adds is not Triton's: the gateway does not wait for a timer.
    """
    state = ArtifactStore(at.settings.artifacts_dir).open(spec.name, artifact).features
    arrays = encode(spec, state, sample(spec, 1, np.random.default_rng(0)))
    inputs = []
    for wanted in input_tensors(spec):
        tensor = InferInput(wanted.name, list(arrays[wanted.name].shape), wanted.datatype)
        tensor.set_data_from_numpy(arrays[wanted.name])
        inputs.append(tensor)
    took_ms: list[float] = []
    late_ms: list[float] = []
    client = InferenceServerClient(at.settings.triton_grpc_url)
    started = time.monotonic()

    async def ask(due: float) -> None:
        sent = time.monotonic()
        await client.infer(
            spec.name,
            inputs,
            outputs=[InferRequestedOutput(SCORES)],
            parameters={ARTIFACT_PARAMETER: artifact},
        )
        if due - started >= WARM_SEC:
            took_ms.append((time.monotonic() - sent) * 1000)
            late_ms.append((sent - due) * 1000)

    async with asyncio.TaskGroup() as group:
        for i in range(int(rate * (WARM_SEC + sec))):
            due = started + i / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(ask(due))
    await client.close()
    calls = Histogram()
    calls.add(took_ms)
    return calls, max(late_ms)


def _result(found: Found, late_ms: Mapping[str, float], highest: float, seed: int, turns: int) -> Result:
    figures: dict[str, Any] = {"highest_events_per_s": highest}
    for percent in ADDED_PERCENTS:
        ours = [histogram.percentile_ms(percent) for histogram in found["ours", COMPARED]]
        beneath = [
            sum_percentile_ms([*parts], percent, seed)
            for parts in zip(found["echo", COMPARED], found["triton", COMPARED], strict=True)
        ]
        figures[f"p{percent}_ms"] = median(ours)
        figures[f"echo_and_triton_p{percent}_ms"] = median(beneath)
        figures[f"added_p{percent}_ms"] = median(
            mine - theirs for mine, theirs in zip(ours, beneath, strict=True)
        )
    figures["producer_late_ms"] = {name: round(value, 2) for name, value in late_ms.items()}
    lines = [
        Line(
            f"{what} at {rate:,.0f}/s, p{percent:g}", [each.percentile_ms(percent) for each in histograms], "ms",
            f"{sum(each.count for each in histograms):,} answers",
        )
        for (what, rate), histograms in found.items()
        for percent in PERCENTS
    ]  # fmt: skip
    return Result("latency", figures, lines, seed, turns)
