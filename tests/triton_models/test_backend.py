"""The backend file in a real tritonserver. Order is what is asserted, never a duration."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from runtime.artifacts import ArtifactStore
from schemas.artifact import WEIGHTS
from schemas.tensors import ARTIFACT_PARAMETER, SCORES, UNLOAD_PARAMETER
from tests.triton_models.artifacts import Version, write_toy, write_version
from tests.triton_models.serving import DEADLINE_SEC, described, started
from tests.waiting import until

pytestmark = pytest.mark.stack


class Server:
    """A tritonserver that hosts the model `toy`, and a client."""

    def __init__(self, models_dir: Path, store: ArtifactStore, grpc_port: int) -> None:
        self.models_dir = models_dir
        self.store = store
        self._client = triton.InferenceServerClient(f"127.0.0.1:{grpc_port}")

    def write(self, version: str, **options: Any) -> Version:
        return write_version(self.store, self.models_dir, version, **options)

    def infer(
        self,
        version: Version,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> NDArray[np.float32]:
        result = self._client.infer(
            "toy", _inputs(version.inputs if inputs is None else inputs),
            parameters={ARTIFACT_PARAMETER: version.artifact, **(parameters or {})}, client_timeout=DEADLINE_SEC,
        )  # fmt: skip
        return _scores(result)

    def start(self, version: Version, timeout_sec: float = DEADLINE_SEC) -> queue.Queue[Any]:
        """Send a request; its scores or its error will be in the queue."""
        answers: queue.Queue[Any] = queue.Queue()
        self._client.async_infer(
            "toy", _inputs(version.inputs),
            callback=lambda result, error: answers.put(error if result is None else _scores(result)),
            parameters={ARTIFACT_PARAMETER: version.artifact}, client_timeout=timeout_sec,
        )  # fmt: skip
        return answers

    def calls(self, what: str) -> int:
        """How often the module was built (`loads`) or run (`forwards`) in any process so far."""
        file = self.models_dir / "toy" / what
        return len(file.read_text()) if file.exists() else 0

    def hold(self, what: str) -> Path:
        """Make the module wait in `loading` or `forward` until the file is removed."""
        file = self.models_dir / "toy" / f"hold_{what}"
        file.touch()
        return file

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("backend")
    models_dir, artifacts_dir = folder / "models", folder / "artifacts"
    write_toy(models_dir)
    process = described(folder, models_dir, artifacts_dir)
    with started(process, folder / "log"):
        server = Server(models_dir, ArtifactStore(artifacts_dir), process.grpc_port)
        yield server
        server.close()


def test_two_versions_answer_by_parameter_as_torch_does_here(server: Server) -> None:
    one, two = server.write("1.0"), server.write("1.1")
    assert np.abs(one.scores - two.scores).max() > 1e-3
    for version in (one, two, one, two):  # the first time through the loader, then from memory
        assert np.abs(server.infer(version) - version.scores).max() <= 1e-6


def test_a_new_version_does_not_hold_up_the_others_and_is_loaded_once(server: Server) -> None:
    old, new = server.write("2.0"), server.write("2.1")
    server.infer(old)
    loads = server.calls("loads")
    held = server.hold("loading")
    try:
        waiting = [server.start(new) for _ in range(3)]
        until(lambda: server.calls("loads") > loads, "it begins to load")
        for _ in range(3):
            assert np.array_equal(server.infer(old), old.scores)
        assert all(answers.empty() for answers in waiting)
    finally:
        held.unlink()
    for answers in waiting:
        assert np.abs(answers.get(timeout=DEADLINE_SEC) - new.scores).max() <= 1e-6
    assert server.calls("loads") == loads + 1


def test_what_the_client_has_given_up_while_it_waited_is_not_computed(server: Server) -> None:
    version = server.write("3.0")
    server.infer(version)
    forwards = server.calls("forwards")
    held = server.hold("forward")
    try:
        running = server.start(version)
        until(lambda: server.calls("forwards") == forwards + 1, "it runs")
        given_up = server.start(version, timeout_sec=0.2)
        assert isinstance(given_up.get(timeout=DEADLINE_SEC), InferenceServerException)
    finally:
        held.unlink()
    running.get(timeout=DEADLINE_SEC)
    server.infer(version)
    assert server.calls("forwards") == forwards + 2


@pytest.mark.parametrize("artifact", ["9.9-0123456789ab", "../electricity", ""])
def test_an_unknown_artifact_is_an_artifact_error(server: Server, artifact: str) -> None:
    version = server.write("4.0")
    with pytest.raises(InferenceServerException, match=r"\] artifact: "):
        server.infer(version, parameters={ARTIFACT_PARAMETER: artifact})
    assert np.array_equal(server.infer(version), version.scores)


def test_an_altered_artifact_is_refused_and_the_others_go_on(server: Server) -> None:
    good, altered = server.write("5.0"), server.write("5.1")
    weights = server.store.root / "toy" / altered.artifact / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(InferenceServerException, match=r"\] artifact: toy/5\.1-.*weights.*: wrong hash"):
        server.infer(altered)
    assert np.array_equal(server.infer(good), good.scores)


def test_a_version_that_fails_its_golden_batch_is_refused_every_time(server: Server) -> None:
    version = server.write("6.0", golden_error=0.1)
    for _ in range(2):
        with pytest.raises(InferenceServerException, match=r"\] artifact: .*golden batch: scores differ"):
            server.infer(version)


def test_tensors_that_do_not_fit_are_an_input_error_on_first_sight_and_later(server: Server) -> None:
    version = server.write("7.0")
    wrong = {**version.inputs, "text_ids": version.inputs["text_ids"] + np.int32(1000)}
    for _ in range(2):
        with pytest.raises(InferenceServerException, match=r"\] input: text_ids: found .* expected 0 … 49"):
            server.infer(version, wrong)
    assert np.array_equal(server.infer(version), version.scores)


def test_a_model_that_fails_is_answered_in_one_line_and_lives_on(server: Server) -> None:
    known, new = server.write("7.1"), server.write("7.2")
    server.infer(known)
    switch = server.models_dir / "toy" / "fail_forward"
    switch.touch()
    try:
        with pytest.raises(InferenceServerException, match=r"\] ValueError: broken model$"):
            server.infer(known)
        with pytest.raises(
            InferenceServerException, match=r"\] artifact: .*golden batch: ValueError: broken model$"
        ):
            server.infer(new)
    finally:
        switch.unlink()
    for version in (known, new):
        assert np.array_equal(server.infer(version), version.scores)


def test_rows_without_any_text_and_no_rows_at_all_are_answered(server: Server) -> None:
    version = server.write("8.0")
    none = np.zeros(0, np.int32)
    dense = version.inputs["dense"]
    assert server.infer(
        version, {"dense": dense, "text_ids": none, "text_offsets": np.zeros(3, np.int32)}
    ).shape == (3, 2)
    assert server.infer(version, {"dense": dense[:0], "text_ids": none, "text_offsets": none}).shape == (0, 2)


def test_an_unloaded_version_is_loaded_again_when_it_is_asked_for(server: Server) -> None:
    one, two = server.write("9.0"), server.write("9.1")
    server.infer(one)
    server.infer(two)
    loads = server.calls("loads")
    server.infer(one, parameters={UNLOAD_PARAMETER: f"{two.artifact},9.8-0123456789ab"})
    assert server.calls("loads") == loads
    assert np.array_equal(server.infer(two), two.scores)
    assert server.calls("loads") == loads + 1


def _inputs(arrays: Mapping[str, NDArray[Any]]) -> list[Any]:
    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), "FP32" if array.dtype == np.float32 else "INT32")
        inputs.append(tensor.set_data_from_numpy(array))
    return inputs


def _scores(result: Any) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = result.as_numpy(SCORES)
    return scores
