"""`tidemill bench steps`: where each microsecond of a record goes in the gateway, step by step, in one process and without services.

A micro-batch of records is taken through the gateway's own functions. What remains of the CPU that `bench throughput` shows for a gateway is
polling, gRPC, the event loop, and the threads of the Kafka client.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, Final

import click
import numpy as np
from confluent_kafka import Message, Producer

from benchmarks.load import Format, bodies
from benchmarks.options import FORMAT, JSON, SUBJECT, quick_is, seed_of
from benchmarks.report import Line, Result, show
from benchmarks.sample import sample
from benchmarks.subject import SUBJECTS
from features.encode import encode
from features.state import fit
from inference.admit import admit
from inference.emit import emit, record_runs, row_ids
from inference.headers import said
from inference.infer import Answer
from inference.model import Model, batch_rows
from inference.observe import observation_rows, observation_values, shared_values
from inference.predict import id_texts
from inference.progress import Assignment, Output, Slice
from inference.router import ServedArm, Share
from inference.versions import Version
from runtime.headers import Headers
from schemas.events import Arm
from schemas.spec import ModelSpec, decode_spec

STEP_SEC: Final = 2.0
QUICK_STEP_SEC: Final = 0.3
"""How long each step is repeated; the least counts."""
LEAST_REPEATS: Final = 3
AT_MS: Final = 1_700_000_000_000


@click.command()
@SUBJECT
@FORMAT
@seed_of("the requests")
@quick_is("Fewer repeats")
@JSON
def command(subject: str, kind: Format, seed: int, quick: bool, as_json: bool) -> None:
    """CPU of each step of the gateway, in microseconds a row."""
    found = measure(subject, kind, seed, QUICK_STEP_SEC if quick else STEP_SEC)
    show(found._replace(quick=quick), as_json)


def measure(subject: str, kind: Format, seed: int, step_sec: float) -> Result:
    """The least CPU time of each step while it is repeated for `step_sec`: what disturbs a run only adds."""
    spec = decode_spec(SUBJECTS[subject].spec_toml(), subject)
    pool = bodies(spec, kind, seed)
    records = max(1, batch_rows(spec) // pool.rows_per_record)
    headers: Headers = list(pool.headers)
    messages = [
        Message(
            topic=f"requests.{subject}", partition=0, offset=i, key=b"entity-%d" % i, timestamp=(1, AT_MS),
            value=pool.values[i % len(pool.values)], headers=headers,
        )
        for i in range(records)
    ]  # fmt: skip
    rows = records * pool.rows_per_record
    found = _steps(spec, messages, rows, step_sec)
    figures: dict[str, Any] = {
        "subject": subject, "format": kind, "batch_rows": rows,
        "us_per_row": {name: round(value, 3) for name, value in found.items()},
        "all_us_per_row": sum(value for name, value in found.items() if not name.startswith("of it")),
    }  # fmt: skip
    return Result("steps", figures, [Line(name, [value], "µs/row") for name, value in found.items()], seed)


def _steps(spec: ModelSpec, messages: list[Message], rows: int, step_sec: float) -> dict[str, float]:
    """Step → µs a row, each on what the one before it left."""
    columns = sample(spec, rows, np.random.default_rng(0))
    state = fit(spec, columns)
    scores = np.random.default_rng(0).dirichlet([1.0] * spec.outputs, rows).astype(np.float32)
    arm = Arm(name="champion", role="live", version="1.0", artifact="1.0-a")
    share = Share(
        ServedArm(arm, Version("1.0-a", "1.0", spec, state, {}, scores[:0], 0.0)), np.arange(rows), 1.0
    )
    assignment = Assignment(f"requests.{spec.name}", 0, uuid.UUID(int=7), 0, 0)
    piece = Slice(assignment, len(messages), len(messages), rows, 0, 0)
    model = Model(spec)
    largest_bytes = max(map(len, messages))
    admitted = admit(spec, messages, said(messages), largest_bytes)
    decoded = model.decoder.decode_all(admitted)
    if len(decoded.accepted) != rows:
        raise AssertionError(
            f"{len(decoded.accepted)} of {rows} rows can be served: {list(decoded.rejections.values())[:1]}"
        )
    answers = [Answer(share, decoded.columns, scores, np.zeros(rows, bool), 1.0)]
    runs = record_runs([piece], admitted.origins)
    ids = row_ids(admitted, runs)

    def observe() -> object:
        batch, row_of = observation_rows(
            spec, admitted, ids, runs, decoded.request_ids, decoded.accepted, answers, decoded.rejections,
            revision=1, observed_ms=AT_MS,
        )  # fmt: skip
        return observation_values(batch, row_of)

    def whole() -> Output:
        (output,) = emit(
            spec, [piece], messages, admitted, decoded.accepted, answers, decoded.rejections, decoded.request_ids,
            revision=1, observed_ms=AT_MS, trace_headers=[],
        )  # fmt: skip

        shared_values(output.observed, [output.place])
        return output

    output = whole()

    steps: dict[str, Callable[[], object]] = {
        "admit: keys, offsets, stamps, headers": lambda: admit(spec, messages, said(messages), largest_bytes),
        "decode into columns": lambda: model.decoder.decode_all(admitted),
        "encode columns into tensors": lambda: encode(spec, state, decoded.columns),
        "emit: answers, observations, their bytes": whole,
        "of it: ids and their text": lambda: id_texts(row_ids(admitted, runs)),
        "of it: observations as Arrow": observe,
    }
    found = {name: _cpu_us(step, step_sec) for name, step in steps.items()}
    found["hand the answers to the Kafka client"] = _least(lambda: _enqueue_us(output), step_sec)
    return {name: spent / rows for name, spent in found.items()}


def _enqueue_us(output: Output) -> float:
    """Nobody listens at this port: what is measured is what the calls cost, and then the records are thrown away."""
    client = Producer({"bootstrap.servers": "127.0.0.1:9", "log_level": 0})
    started = time.thread_time()
    for value, key in zip(output.predictions, output.keys, strict=True):
        client.produce("predictions", value, key, partition=0)
    spent = time.thread_time() - started
    client.purge()
    client.flush(1)
    return spent * 1e6


def _cpu_us(step: Callable[[], object], step_sec: float) -> float:
    """The least CPU time of this thread of those within `step_sec`, after one that warms."""

    def run() -> float:
        started = time.thread_time()
        step()
        return (time.thread_time() - started) * 1e6

    run()
    return _least(run, step_sec)


def _least(run: Callable[[], float], step_sec: float) -> float:
    """The least of what `run` says, over at least `LEAST_REPEATS` and about `step_sec`."""
    found: list[float] = []
    until = time.monotonic() + step_sec
    while len(found) < LEAST_REPEATS or time.monotonic() < until:
        found.append(run())
    return min(found)
