"""The limit: a loop that reads, sends constant tensors to Triton, and writes constant bytes, exactly once. It decodes and computes nothing.

What it reaches is what Python's Kafka client, Triton and the broker leave for a gateway with these guarantees on this machine. The
bytes it writes are those that the gateway wrote, with the same keys and headers, and its batches are as large.

`python -m benchmarks.limit FILE`, FILE a msgpack of `Plan`.
"""

from __future__ import annotations

import signal
import sys
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from confluent_kafka import Message, TopicPartition
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput

from inference.regions import LEAST_BYTES, Region, aligned
from inference.triton import infer_inputs
from runtime.headers import Headers
from runtime.kafka import consumer, gather
from runtime.settings import load_settings
from runtime.transactions import TransactionalProducer
from schemas.tensors import ARTIFACT_PARAMETER, SCORES
from schemas.topics import ARROW

GROUP: Final = "bench-limit"
CHUNK_RECORDS: Final = 8192
_ARROW_HEADERS: Final[Headers] = [("content-type", ARROW.encode())]


class Tensor(msgspec.Struct, frozen=True):
    """A constant input of one micro-batch."""

    name: str
    datatype: str
    shape: list[int]
    dtype: str
    data: bytes


class Observed(msgspec.Struct, frozen=True):
    """A record of observations."""

    value: bytes
    rows: int


class Plan(msgspec.Struct, frozen=True):
    """What to read, what to ask, what to write."""

    requests: str
    predictions: str
    observations: str
    model: str
    artifact: str
    batch_records: int
    """Records whose rows are one micro-batch."""
    rows_per_record: int
    tensors: list[Tensor]
    prediction_values: list[bytes]
    prediction_headers: list[tuple[str, bytes]]
    """Of every prediction; of JSON there are none."""
    observed: list[Observed]


def main() -> int:
    """Run until SIGTERM."""
    plan = msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=Plan)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Loop(plan).run(stop)
    return 0


class Loop:
    """Three things at once: a chunk is read, one before it is in Triton, one before that is being committed."""

    def __init__(self, plan: Plan) -> None:
        settings = load_settings()
        self._plan = plan
        ahead: dict[str, Any] = {**gather(wait_ms=10), "queued.min.messages": 50_000}
        self._consumer = consumer(settings, GROUP, **ahead)
        self._consumer.subscribe([plan.requests])
        self._producer = TransactionalProducer(settings, GROUP, **{"linger.ms": 0.5})
        self._triton = InferenceServerClient(settings.triton_grpc_url)
        self._region, self._inputs = _inputs(self._triton, plan.tensors)
        self._outputs = [InferRequestedOutput(SCORES)]
        self._parameters = {ARTIFACT_PARAMETER: plan.artifact}
        self._values = cycle(plan.prediction_values)
        self._observed = cycle(plan.observed)
        self._unobserved_rows = 0
        """Rows that were answered and of which no observation was written yet: one is of as many rows as it was in the gateway."""
        self._committer = ThreadPoolExecutor(1)
        self._committing: Future[None] | None = None

    def run(self, stop: threading.Event) -> None:
        """Until `stop`."""
        pending: tuple[list[Message], list[Any]] | None = None
        while not stop.is_set():
            messages = self._consumer.consume(1, 0.05) if pending is None else []
            messages += self._consumer.consume(CHUNK_RECORDS, 0.0)
            asked = self._ask(messages) if messages else None
            if pending is not None:
                self._write(*pending)
            pending = asked
        self._wait_committed()
        self._consumer.close()
        self._producer.close()
        if self._region:
            self._triton.unregister_system_shared_memory(self._region.name)

    def _ask(self, messages: list[Message]) -> tuple[list[Message], list[Any]]:
        calls = []
        for _ in range(0, len(messages), self._plan.batch_records):
            answered: Future[Any] = Future()
            self._triton.async_infer(
                self._plan.model,
                self._inputs,
                _resolver(answered),
                outputs=self._outputs,
                parameters=self._parameters,
            )
            calls.append(answered)
        return messages, calls

    def _write(self, messages: Sequence[Message], calls: Sequence[Future[Any]]) -> None:
        for call in calls:
            call.result(30).as_numpy(SCORES)
        self._wait_committed()
        produce = self._producer.produce
        predictions, observations = self._plan.predictions, self._plan.observations
        self._producer.begin()
        headers: Headers = [*self._plan.prediction_headers]
        if headers:
            for message, value in zip(messages, islice(self._values, len(messages)), strict=True):
                produce(predictions, value, message.key(), headers, message.partition() or 0)
        else:
            runs: dict[int, list[bytes | None]] = {}
            for message in messages:
                runs.setdefault(message.partition() or 0, []).append(message.key())
            for partition, keys in runs.items():
                values = list(islice(self._values, len(keys)))
                self._producer.produce_run(predictions, values, keys, partition)
        self._unobserved_rows += len(messages) * self._plan.rows_per_record
        while self._unobserved_rows > 0:
            observed = next(self._observed)
            self._unobserved_rows -= observed.rows
            produce(observations, observed.value, b"limit", _ARROW_HEADERS)
        self._producer.poll()
        newest = {message.partition() or 0: (message.offset() or 0) + 1 for message in messages}
        places = [
            TopicPartition(self._plan.requests, partition, offset) for partition, offset in newest.items()
        ]
        self._producer.send_offsets(places, self._consumer.consumer_group_metadata())
        self._committing = self._committer.submit(self._producer.commit)

    def _wait_committed(self) -> None:
        if self._committing is not None:
            self._committing.result()
            self._committing = None


def _resolver(answered: Future[Any]) -> Any:
    def resolve(result: Any, error: Exception | None) -> None:
        if error is not None:
            answered.set_exception(error)
        else:
            answered.set_result(result)

    return resolve


def _inputs(client: InferenceServerClient, tensors: Sequence[Tensor]) -> tuple[Region | None, list[Any]]:
    """The same inputs for every call, where the gateway would have them: in shared memory, if they are large."""
    arrays = {t.name: np.frombuffer(t.data, t.dtype).reshape(t.shape) for t in tensors}
    region = None
    size_bytes = sum(aligned(array.nbytes) for array in arrays.values())
    if size_bytes >= LEAST_BYTES:
        region = Region(f"tidemill-{GROUP}-{uuid.uuid4().hex}", size_bytes)
        try:
            client.register_system_shared_memory(region.name, f"/{region.name}", size_bytes)
        finally:
            region.unlink()
    return region, infer_inputs({t.name: t.datatype for t in tensors}, arrays, region)


if __name__ == "__main__":
    sys.exit(main())
