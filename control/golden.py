"""Golden inference: a version may answer only if Triton gives, for its golden batch, the scores that training recorded."""

from __future__ import annotations

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from runtime.artifacts import ArtifactStore
from schemas.errors import ArtifactError, Outage
from schemas.tensors import ARTIFACT_PARAMETER, SCORES, UNLOAD_PARAMETER

_INPUT = "in."
_OUTPUT = "out." + SCORES
_TIMEOUT_SEC = 30.0
_OUTAGES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")


def check_golden(
    client: InferenceServerClient, store: ArtifactStore, model: str, artifact: str, unload: str = ""
) -> str:
    """ "" if the version answers as recorded, else one line that says why not.

    `unload`: comma-separated artifacts that Triton may drop from memory.

    Raises:
        Outage: Triton did not answer; nothing is known about the version.
    """
    try:
        opened = store.open(model, artifact)
        golden = opened.golden
    except ArtifactError as error:
        return str(error)
    inputs = []
    for name, array in golden.items():
        if name.startswith(_INPUT):
            tensor = InferInput(name.removeprefix(_INPUT), list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
    parameters = {ARTIFACT_PARAMETER: artifact} | ({UNLOAD_PARAMETER: unload} if unload else {})
    try:
        answer = client.infer(
            model,
            inputs,
            outputs=[InferRequestedOutput(SCORES)],
            parameters=parameters,
            client_timeout=_TIMEOUT_SEC,
        )
    except InferenceServerException as error:
        if any(status in str(error.status()) for status in _OUTAGES):
            raise Outage(f"Triton: {error.message()}") from error
        return f"golden inference failed: {error.message()}"
    scores, recorded = answer.as_numpy(SCORES), golden[_OUTPUT]
    if scores is None or scores.shape != recorded.shape:
        return f"golden inference: scores of shape {None if scores is None else scores.shape}, expected {recorded.shape}"
    distance = float(np.max(np.abs(scores - recorded), initial=0.0))
    if not distance <= opened.manifest.tolerance:
        return f"golden inference: scores differ by {distance:.2g}, expected at most {opened.manifest.tolerance:.2g}"
    return ""
