"""The one Triton Python-backend file: every model of the repository is a copy of it and hosts all versions of its spec.

The request parameter `artifact` chooses the version. One that is in memory answers at once. One that is seen for the first time is
opened, checked by hash and by its golden batch on the loader's thread, which answers the request through its response sender;
`execute` goes on meanwhile.

Errors begin with what is at fault: `artifact:` (unknown, altered, or not answering as recorded) or `input:` (the request's tensors); anything
else begins with the exception's name, and its traceback is in Triton's log.
Tensors cross by DLPack: with numpy 2 the array interface of this backend silently gives empty tensors.
"""

from __future__ import annotations

import json
import traceback
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from runtime.artifacts import ArtifactStore
from schemas.errors import ArtifactError
from schemas.tensors import ARTIFACT_PARAMETER, SCORES, UNLOAD_PARAMETER
from triton_models.hosting import Hosted, InputError, load
from triton_models.versions import Versions


class TritonPythonModel:
    """What the Python backend looks for in a model file. `execute` is called by one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called once; no version is loaded before it is asked for."""
        torch.set_num_threads(
            1
        )  # the machine's cores belong to more than one process, and a micro-batch is small
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        store = ArtifactStore(Path(parameters["artifacts_dir"]))
        models_dir = Path(parameters["models_dir"])
        model = config["name"]
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._versions = Versions(lambda artifact: load(store.open(model, artifact), models_dir))

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response per request, or None where the loader is going to send it."""
        return [self._answer_or_load(request) for request in requests]

    def finalize(self) -> None:
        """Called once, when no request is left."""
        self._versions.close()

    def _answer_or_load(self, request: Any) -> Any:
        parameters = json.loads(request.parameters() or "{}")
        for unwanted in filter(None, str(parameters.get(UNLOAD_PARAMETER, "")).split(",")):
            self._versions.unload(unwanted.strip())
        artifact = parameters.get(ARTIFACT_PARAMETER)
        if not isinstance(artifact, str):
            return _error(
                f"artifact: request parameter {ARTIFACT_PARAMETER!r}: found {artifact!r}, expected a name"
            )
        hosted = self._versions.get(artifact)
        if hosted is not None:
            return self._answer(request, hosted)
        sender = request.get_response_sender()

        def answer(loading: Future[Hosted]) -> None:
            sender.send(
                self._answer_loaded(request, loading), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            )

        self._versions.load(artifact).add_done_callback(answer)
        return None

    def _answer_loaded(self, request: Any, loading: Future[Hosted]) -> Any:
        """The answer once `loading` is done."""
        error = loading.exception()
        return self._answer(request, loading.result()) if error is None else _failed(error)

    def _answer(self, request: Any, hosted: Hosted) -> Any:
        """A response whatever happens: on the loader's thread nobody else would send one."""
        try:
            return self._scored(request, hosted)
        except Exception as error:  # noqa: BLE001  whatever it is, it is logged and answered
            return _failed(error)

    def _scored(self, request: Any, hosted: Hosted) -> Any:
        if request.is_cancelled():
            # The client's deadline has passed while the request waited: it will ask again, and this answer would only delay that.
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED)
            )
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self._inputs}
        inputs: dict[str, Tensor] = {
            name: from_dlpack(tensor.to_dlpack()) for name, tensor in tensors.items() if tensor is not None
        }
        scores = hosted.scores(inputs)
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(SCORES, scores.contiguous())])


def _failed(error: BaseException) -> Any:
    if isinstance(error, ArtifactError):
        return _error(f"artifact: {error}")
    if isinstance(error, InputError):
        return _error(f"input: {error}")
    pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
    return _error(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _error(message: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))
