"""Calls to Triton, and what their failures mean: the server is away (`Outage`), or it cannot answer these rows (`InferenceFailed`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.aio import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from inference.regions import Region, Regions, is_forgotten
from schemas.errors import Outage, TidemillError
from schemas.spec import ModelSpec
from schemas.tensors import ARTIFACT_PARAMETER, SCORES, UNLOAD_PARAMETER, input_tensors

_CHANNEL: Final = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own back-off grows to two minutes: a server that is back must be found at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]
_AWAY: Final = frozenset(
    f"StatusCode.{name}"
    for name in (
        "UNAVAILABLE",
        "DEADLINE_EXCEEDED",
        "CANCELLED",
        "RESOURCE_EXHAUSTED",
        "NOT_FOUND",
        "ABORTED",
    )
)
_DEAD_STUB: Final = ("Stub process", "stub process", "is not ready", "not healthy")
"""Triton reports the death of a Python model's process as an internal error, like an exception of the model."""


class InferenceFailed(TidemillError):
    """The model was there and failed on these rows, or answered something that is not scores."""


class Triton:
    """One gRPC channel to the server."""

    def __init__(self, url: str, owner: str = "") -> None:
        """`owner` names who shares memory with the server, in one process at a time; without one all tensors are sent."""
        self._client = InferenceServerClient(url, channel_args=_CHANNEL)
        self._output = InferRequestedOutput(SCORES)
        self._regions = Regions(self._client, owner) if owner else None

    async def infer(
        self, spec: ModelSpec, artifact: str, tensors: dict[str, NDArray[Any]], rows: int, unload: str = ""
    ) -> NDArray[np.float32]:
        """Scores [rows, spec.outputs] of one version. A row's scores may be NaN: that is the caller's to judge.

        Raises:
            Outage: not reachable, not ready, or no answer within `spec.serve.timeout_ms`.
            InferenceFailed: the model failed, or its answer has a wrong shape or type.
        """
        parameters = {ARTIFACT_PARAMETER: artifact} | ({UNLOAD_PARAMETER: unload} if unload else {})
        try:
            result = await self._ask(spec, tensors, parameters)
        except InferenceServerException as error:
            raise _meaning(spec.name, artifact, error) from None
        scores = result.as_numpy(SCORES)
        if scores is None or scores.dtype != np.float32 or scores.shape != (rows, spec.outputs):
            found = "nothing" if scores is None else f"{scores.dtype} {list(scores.shape)}"
            raise InferenceFailed(
                f"{spec.name}/{artifact}: expected scores float32 {[rows, spec.outputs]}, found {found}"
            )
        return cast("NDArray[np.float32]", scores)

    async def _ask(
        self, spec: ModelSpec, tensors: dict[str, NDArray[Any]], parameters: dict[str, str]
    ) -> InferResult:
        """Ask with the tensors in shared memory, where they are large and the server knows it; else send them."""
        regions = self._regions
        region = await regions.borrow(tensors.values()) if regions else None
        if regions and region:
            try:
                return await self._call(spec, tensors, parameters, region)
            except InferenceServerException as error:
                if not is_forgotten(error):
                    raise
                # It was restarted since it was told: no failure of these rows, which are sent. The next call tells it anew.
                regions.forget(region)
            finally:
                regions.give_back(region)
        return await self._call(spec, tensors, parameters, None)

    async def _call(
        self,
        spec: ModelSpec,
        tensors: dict[str, NDArray[Any]],
        parameters: dict[str, str],
        region: Region | None,
    ) -> InferResult:
        datatypes = {wanted.name: wanted.datatype for wanted in input_tensors(spec)}
        timeout_ms = spec.serve.timeout_ms
        return await self._client.infer(
            spec.name, infer_inputs(datatypes, tensors, region), outputs=[self._output], parameters=parameters,
            client_timeout=timeout_ms / 1000,
            # The client's deadline does not stop an execution that waits in the server's queue; this does.
            timeout=timeout_ms * 1000,
        )  # fmt: skip

    async def close(self) -> None:
        """Close the channel."""
        if self._regions:
            await self._regions.close()
        await self._client.close()


def infer_inputs(
    datatypes: Mapping[str, str], tensors: Mapping[str, NDArray[Any]], region: Region | None
) -> list[InferInput]:
    """The tensors of a call, in it or in `region`, by Triton's names of their types."""
    places = region.write(tensors) if region else {}
    inputs = []
    for name, datatype in datatypes.items():
        array = tensors[name]
        tensor = InferInput(name, list(array.shape), datatype)
        if region:
            tensor.set_shared_memory(region.name, array.nbytes, places[name])
        else:
            tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def _meaning(model: str, artifact: str, error: InferenceServerException) -> TidemillError:
    message = str(error.message() or "").strip()
    line = f"{model}/{artifact}: {error.status()}: {message.splitlines()[-1] if message else 'no message'}"
    if str(error.status()) in _AWAY or any(sign in message for sign in _DEAD_STUB):
        return Outage(line)
    return InferenceFailed(line)
