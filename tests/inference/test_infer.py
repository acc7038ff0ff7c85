"""What becomes of rows when the server is away, the model fails, or a shadow is slow: Triton is stood in for by a function."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from features.columns import Columns
from inference.infer import SHADOW_GRACE_SEC, Answer, Inference, Superseded
from inference.model import Model
from inference.router import Route, ServedArm, Share
from inference.triton import InferenceFailed, Triton
from inference.versions import Version
from runtime.service import Health
from schemas.errors import Outage
from schemas.events import Arm
from schemas.spec import ModelSpec, decode_spec

SPEC = decode_spec(
    'name = "toy"\ntask = "regression"\nmodule = "m:T"\n[features]\nx = { type = "float" }\n[rollout]\nmetric = "squared_error"',
    "toy",
)
STATE = {"mean": np.zeros(1, np.float32), "std": np.ones(1, np.float32)}
GOLDEN = np.array([[42.0]], np.float32)


class Server:
    """Answers x + 1 unless `behave` says otherwise; the golden row is 41."""

    def __init__(self, behave: Callable[[str, NDArray[np.float32]], Any] = lambda artifact, x: None) -> None:
        self.behave = behave
        self.calls = 0

    async def infer(
        self, spec: ModelSpec, artifact: str, tensors: dict[str, NDArray[Any]], rows: int, unload: str = ""
    ) -> NDArray[np.float32]:
        self.calls += 1
        x = tensors["dense"]
        result = self.behave(artifact, x)
        if asyncio.iscoroutine(result):
            await result
        return cast("NDArray[np.float32]", x + 1)


def share(artifact: str, rows: int, role: str = "live") -> Share:
    version = Version(artifact, "1.0", SPEC, STATE, {"dense": GOLDEN - 1}, GOLDEN, 1e-6)
    arm = Arm(name=artifact, role=role, version="1.0", artifact=artifact)  # type: ignore[arg-type]  # one of two words
    return Share(ServedArm(arm, version), np.arange(rows), 1.0)


def columns(*values: float) -> Columns:
    return Columns(np.array(values, np.float32).reshape(-1, 1), pa.array([], pa.string()))


def answers(server: Server, rows: Columns, *shares: Share) -> tuple[list[Answer], Model]:
    async def main() -> tuple[list[Answer], Model]:
        model = Model(SPEC)
        inference = Inference(cast("Triton", server), Health("test"), None)
        return await inference.answers(model, rows, list(shares)), model

    return asyncio.run(main())


def test_a_poison_row_is_found_among_a_thousand_and_refused_alone() -> None:
    def fail(artifact: str, x: NDArray[np.float32]) -> None:
        if (x == 666).any():
            raise InferenceFailed("boom")

    server = Server(fail)
    values = np.arange(1000.0)
    (answer,), _ = answers(
        server, columns(*np.where(values == 123, 666, np.where(values == 666, 0, values))), share("a", 1000)
    )
    assert np.flatnonzero(answer.failed).tolist() == [123]
    assert answer.scores[500] == 501
    assert server.calls < 60


def test_a_row_with_nan_scores_is_refused_alone() -> None:
    (answer,), _ = answers(Server(), columns(1, float("inf"), 3), share("a", 3))
    # The encoder cuts infinities; what the model answers is what counts.
    assert answer.failed.tolist() == [False, False, False]

    class Nan(Server):
        async def infer(self, *arguments: Any, **named: Any) -> NDArray[np.float32]:
            scores = await super().infer(*arguments, **named)
            return np.where(scores == 3, np.float32(np.nan), scores)

    (answer,), _ = answers(Nan(), columns(1, 2, 3), share("a", 3))
    assert answer.failed.tolist() == [False, True, False]


def test_an_outage_is_waited_out_and_costs_no_row() -> None:
    tries = iter([Outage("away")] * 5)

    def away(artifact: str, x: NDArray[np.float32]) -> None:
        for error in tries:
            raise error

    (answer,), model = answers(Server(away), columns(1, 2), share("a", 2))
    assert answer.scores.ravel().tolist() == [2, 3]
    assert not answer.failed.any()
    assert model.away == ""


def test_no_row_is_blamed_while_the_golden_batch_fails_too() -> None:
    broken = iter([InferenceFailed("every batch fails")] * 6)

    def fail(artifact: str, x: NDArray[np.float32]) -> None:
        for error in broken:
            raise error

    (answer,), _ = answers(Server(fail), columns(1, 2, 3), share("a", 3))
    assert answer.scores.ravel().tolist() == [2, 3, 4]
    assert not answer.failed.any()


def test_rows_of_a_version_that_is_rolled_back_are_given_back_to_be_routed_again() -> None:
    """Its artifact is spoilt: it will never pass its golden batch, and whoever holds its rows must not wait for it."""

    async def main() -> Model:
        def spoilt(artifact: str, x: NDArray[np.float32]) -> None:
            raise Outage("gone")

        model, broken, sound = Model(SPEC), share("a", 2), share("b", 2)
        model.route = Route(SPEC.name, 1, (broken.served,))
        inference = Inference(cast("Triton", Server(spoilt)), Health("test"), None)
        held = asyncio.create_task(inference.answers(model, columns(1, 2), [broken]))
        for _ in range(100):
            await asyncio.sleep(0)
        assert model.away
        model.route = Route(SPEC.name, 2, (sound.served,))
        with pytest.raises(Superseded, match=r"1\.0 of toy"):
            await held
        return model

    assert asyncio.run(main()).away == ""


def test_rows_that_kill_the_server_again_and_again_are_found_too() -> None:
    def die(artifact: str, x: NDArray[np.float32]) -> None:
        if (x == 666).any():
            raise Outage("stub process is not healthy")

    (answer,), _ = answers(Server(die), columns(1, 666, 3, 4), share("a", 4))
    assert answer.failed.tolist() == [False, True, False, False]


@pytest.mark.parametrize("fault", ["failed", "away", "slow"])
def test_a_shadow_neither_fails_nor_delays_the_live_answer(fault: str) -> None:
    async def hang() -> None:
        await asyncio.sleep(60)

    def behave(artifact: str, x: NDArray[np.float32]) -> Any:
        if artifact == "shadow" and fault == "slow":
            return hang()
        if artifact == "shadow":
            raise InferenceFailed("boom") if fault == "failed" else Outage("away")
        return None

    async def main() -> tuple[list[Answer], float]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        inference = Inference(cast("Triton", Server(behave)), Health("test"), None)
        found = await inference.answers(
            Model(SPEC), columns(1, 2), [share("live", 2), share("shadow", 2, "shadow")]
        )
        return found, loop.time() - started

    (live, shadow), took_sec = asyncio.run(main())
    assert live.scores.ravel().tolist() == [2, 3]
    assert shadow.failed.all()
    assert took_sec < SHADOW_GRACE_SEC + 1


def test_a_shadow_that_fails_on_one_row_keeps_the_others() -> None:
    def behave(artifact: str, x: NDArray[np.float32]) -> None:
        if artifact == "shadow" and (x == 2).any():
            raise InferenceFailed("boom")

    (_, shadow), _ = answers(Server(behave), columns(1, 2, 3), share("live", 3), share("shadow", 3, "shadow"))
    assert shadow.failed.tolist() == [False, True, False]
