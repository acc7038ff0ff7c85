"""What a server's answers come to, over the wire: a gRPC server in Triton's place that answers wrongly, late, or dies at its work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from prometheus_client import REGISTRY
from tritonclient.grpc import service_pb2, service_pb2_grpc

from features.columns import Columns
from inference.infer import Answer, Inference
from inference.model import Model
from inference.router import ServedArm, Share
from inference.triton import Triton
from inference.versions import Version
from runtime.service import Health
from schemas.events import Arm
from schemas.spec import decode_spec

SPEC: Final = decode_spec(
    'name = "toy"\ntask = "regression"\nmodule = "m:T"\n[features]\nx = { type = "float" }\n[rollout]\nmetric = "squared_error"\n'
    "[serve]\ntimeout_ms = 200",
    "toy",
)
STATE: Final = {"mean": np.zeros(1, np.float32), "std": np.ones(1, np.float32)}
GOLDEN: Final = np.array([[-1.0]], np.float32)
BAD: Final = 666.0
Floats = NDArray[np.float32]
Context = Any
Behaviour = Callable[[Floats, Context], Awaitable[NDArray[Any] | None]]


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated without types
    """Answers x + 1 unless `behave` answers, or ends the call, in its place; golden batches are always answered well."""

    def __init__(self, behave: Behaviour) -> None:
        self._behave = behave
        self.calls = 0

    async def ModelInfer(self, request: Any, context: Context) -> Any:  # noqa: N802  the protocol's name
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(-1, 1)
        answer: NDArray[Any] | None = None
        if not np.array_equal(x, GOLDEN):
            self.calls += 1
            answer = await self._behave(x, context)
        scores = x + 1 if answer is None else answer
        response = service_pb2.ModelInferResponse(model_name="toy", model_version="1")
        if scores.size:
            datatype = "FP32" if scores.dtype == np.float32 else "FP64"
            response.outputs.add(name="scores", datatype=datatype, shape=scores.shape)
            response.raw_output_contents.append(scores.tobytes())
        return response


def served(behave: Behaviour, *values: float) -> tuple[Answer, int]:
    """What the gateway's inference makes of these rows, and how many calls with rows the server got."""

    async def main() -> tuple[Answer, int]:
        server, servicer = grpc.aio.server(), Server(behave)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        triton = Triton(f"127.0.0.1:{port}")
        version = Version("1.0-a", "1.0", SPEC, STATE, {"dense": GOLDEN}, GOLDEN + 1, 1e-6)
        arm = Arm(name="champion", role="live", version="1.0", artifact="1.0-a")
        share = Share(ServedArm(arm, version), np.arange(len(values)), 1.0)
        columns = Columns(np.array(values, np.float32).reshape(-1, 1), pa.array([], pa.string()))
        try:
            async with asyncio.timeout(20):
                (answer,) = await Inference(triton, Health("test"), None).answers(
                    Model(SPEC), columns, [share]
                )
        finally:
            await triton.close()
            await server.stop(None)
        return answer, servicer.calls

    return asyncio.run(main())


def counted(result: str) -> float:
    """`tidemill_inferences_total` of one result."""
    labels = {"model": "toy", "version": "1.0", "result": result}
    return REGISTRY.get_sample_value("tidemill_inferences_total", labels) or 0.0


WRONG: Final[dict[str, Callable[[Floats], NDArray[Any]]]] = {
    "a row too many": lambda x: np.zeros((len(x) + 1, 1), np.float32),
    "an output too many": lambda x: np.zeros((len(x), 2), np.float32),
    "another type": lambda x: np.zeros((len(x), 1), np.float64),
    "nothing": lambda x: np.zeros((0, 1), np.float32),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_row_that_makes_the_answer_no_scores_is_refused_alone_and_counted(
    wrong: Callable[[Floats], NDArray[Any]],
) -> None:
    async def behave(x: Floats, _context: Context) -> NDArray[Any] | None:
        return wrong(x) if (x == BAD).any() else None

    before = counted("failed")
    answer, _ = served(behave, 1, BAD, 3)
    assert answer.failed.tolist() == [False, True, False]
    assert answer.scores[[0, 2], 0].tolist() == [2, 4]
    assert counted("failed") > before


def test_a_row_with_a_nan_is_refused_without_asking_again() -> None:
    async def behave(x: Floats, _context: Context) -> Floats:
        return np.where(x == BAD, np.float32(np.nan), x + 1)

    answer, calls = served(behave, 1, BAD, 3)
    assert answer.failed.tolist() == [False, True, False]
    assert calls == 1


def test_an_answer_that_comes_too_late_is_asked_for_again_and_costs_no_row() -> None:
    late = iter([True, True, False])

    async def behave(_x: Floats, _context: Context) -> None:
        if next(late):
            await asyncio.sleep(5)

    before = counted("away")
    answer, calls = served(behave, 1, 2, 3)
    assert not answer.failed.any()
    assert answer.scores.ravel().tolist() == [2, 3, 4]
    assert (calls, counted("away") - before) == (3, 2)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (grpc.StatusCode.INTERNAL, "Failed to process the request(s) for model instance 'toy_0_0', message: Stub process 'toy_0_0' is not healthy."),
        (grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'toy' is not ready"),
    ],
    ids=["stub", "model"],
)  # fmt: skip
def test_a_stub_that_dies_at_its_work_costs_no_row(code: grpc.StatusCode, says: str) -> None:
    deaths = iter([True, True, False])

    async def behave(_x: Floats, context: Context) -> None:
        if next(deaths):
            await context.abort(code, says)

    before = counted("away")
    answer, _ = served(behave, 1, 2, 3)
    assert not answer.failed.any()
    assert answer.scores.ravel().tolist() == [2, 3, 4]
    assert counted("away") - before == 2


def test_a_row_on_which_the_models_code_raises_is_refused_alone() -> None:
    async def behave(x: Floats, context: Context) -> None:
        if (x == BAD).any():
            await context.abort(grpc.StatusCode.INTERNAL, "RuntimeError: a row of its own kind")

    answer, _ = served(behave, 1, BAD, 3)
    assert answer.failed.tolist() == [False, True, False]
