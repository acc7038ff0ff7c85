"""Memory shared with Triton: a gRPC server in its place that opens the memory that it is told of, or does not; at the end, Triton itself."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.grpc.aio import InferenceServerClient

from inference.regions import FOLDER, LEAST_BYTES, REGION_BYTES
from inference.triton import Triton
from runtime.artifacts import ArtifactStore
from schemas.errors import Outage
from schemas.spec import decode_spec, load_spec
from tests.triton_models.artifacts import write_toy, write_version
from tests.triton_models.serving import described, started

SPEC: Final = decode_spec(
    'name = "toy"\ntask = "regression"\nmodule = "m:T"\n[features]\nx = { type = "float" }\n[rollout]\nmetric = "squared_error"',
    "toy",
)
OWNER: Final = f"test-{os.getpid()}"
LARGE: Final = LEAST_BYTES // 4
Floats = NDArray[np.float32]
Context = Any


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated without types
    """Answers x + 1, of what is sent or of what lies in a region."""

    def __init__(self) -> None:
        self.regions: dict[str, mmap.mmap] = {}
        self.registered: list[str] = []
        self.sent = self.shared = 0
        self.refusal: grpc.StatusCode | None = None
        self.held: asyncio.Event | None = None
        self.telling: asyncio.Event | None = None
        self.holds = asyncio.Event()
        self.knows_none = False

    async def ModelInfer(self, request: Any, context: Context) -> Any:  # noqa: N802  the protocol's name
        if request.raw_input_contents:
            self.sent += 1
            x = np.frombuffer(request.raw_input_contents[0], np.float32)
        else:
            self.shared += 1
            place = request.inputs[0].parameters
            name = place["shared_memory_region"].string_param
            if self.held:
                self.holds.set()
                await self.held.wait()
            if name not in self.regions:
                await context.abort(
                    grpc.StatusCode.NOT_FOUND, f"Unable to find system shared memory region: '{name}'"
                )
            size, at = place["shared_memory_byte_size"].int64_param, place["shared_memory_offset"].int64_param
            x = np.frombuffer(self.regions[name][at : at + size], np.float32)
        response = service_pb2.ModelInferResponse(model_name="toy", model_version="1")
        response.outputs.add(name="scores", datatype="FP32", shape=(len(x), 1))
        response.raw_output_contents.append((x + 1).tobytes())
        return response

    async def SystemSharedMemoryRegister(self, request: Any, context: Context) -> Any:  # noqa: N802
        self.registered.append(request.name)
        if self.telling:
            self.holds.set()
            await self.telling.wait()
        if self.refusal:
            await context.abort(self.refusal, f"Unable to open shared memory region: '{request.key}'")
        with (FOLDER / request.key.lstrip("/")).open("r+b") as file:
            self.regions[request.name] = mmap.mmap(file.fileno(), request.byte_size)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryStatus(self, _request: Any, context: Context) -> Any:  # noqa: N802
        if self.knows_none:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no shared memory here")
        found = service_pb2.SystemSharedMemoryStatusResponse()
        for name in self.regions:
            found.regions[name].name = name
        return found

    async def SystemSharedMemoryUnregister(self, request: Any, _context: Context) -> Any:  # noqa: N802
        self.regions.pop(request.name, None)
        return service_pb2.SystemSharedMemoryUnregisterResponse()


def run(use: Callable[[Triton, Server], Awaitable[None]]) -> None:
    async def main() -> None:
        server, servicer = grpc.aio.server(), Server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        triton = Triton(f"127.0.0.1:{port}", OWNER)
        try:
            async with asyncio.timeout(30):
                await use(triton, servicer)
        finally:
            await triton.close()
            await server.stop(None)
        assert not servicer.regions, "the server forgets what we let go of"
        assert not list(FOLDER.glob(f"tidemill-{OWNER}-*")), "nothing is left"

    asyncio.run(main())


async def ask(triton: Triton, x: Floats) -> None:
    scores = await triton.infer(SPEC, "1.0-a", {"dense": x.reshape(-1, 1)}, len(x))
    np.testing.assert_array_equal(scores.ravel(), x + 1)


def numbers(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).random(count, dtype=np.float32)


def mapped() -> int:
    """How often this process has a region in its memory."""
    return Path("/proc/self/maps").read_text().count(f"tidemill-{OWNER}-")


def test_large_tensors_are_shared_and_small_ones_sent() -> None:
    async def use(triton: Triton, server: Server) -> None:
        await ask(triton, numbers(LARGE))
        await ask(triton, numbers(LARGE - 64))
        assert (server.shared, server.sent) == (1, 1)

    run(use)


def test_calls_at_once_have_a_region_each_and_calls_in_turn_the_same() -> None:
    async def use(triton: Triton, server: Server) -> None:
        for turn in range(3):
            await asyncio.gather(*(ask(triton, numbers(LARGE + seed, 3 * turn + seed)) for seed in range(3)))
        assert len(server.registered) == 3

    run(use)


def test_a_call_that_is_too_large_for_a_free_region_takes_its_place() -> None:
    async def use(triton: Triton, server: Server) -> None:
        await ask(triton, numbers(LARGE))
        await ask(triton, numbers(REGION_BYTES // 4 + 1))
        await ask(triton, numbers(LARGE))
        assert (len(server.registered), len(server.regions), server.shared) == (2, 1, 3)

    run(use)


def test_a_server_that_was_restarted_is_sent_what_it_cannot_find_and_told_anew() -> None:
    async def use(triton: Triton, server: Server) -> None:
        for turn in range(3):
            await asyncio.gather(*(ask(triton, numbers(LARGE, seed)) for seed in range(2)))
            server.regions.clear()
            assert (len(server.registered), server.sent) == (2 * (turn + 1), 2 * turn)
            await asyncio.gather(*(ask(triton, numbers(LARGE, seed)) for seed in range(2)))
            await asyncio.gather(*(ask(triton, numbers(LARGE, seed)) for seed in range(2)))

    run(use)


def test_who_hears_late_that_it_was_restarted_forgets_nothing_that_was_told_since() -> None:
    async def use(triton: Triton, server: Server) -> None:
        await asyncio.gather(*(ask(triton, numbers(LARGE, seed)) for seed in range(2)))
        server.held = asyncio.Event()
        late = asyncio.create_task(ask(triton, numbers(LARGE)))
        await server.holds.wait()
        held, server.held = server.held, None
        server.regions.clear()
        await ask(triton, numbers(LARGE, 1))
        await ask(triton, numbers(LARGE, 2))
        assert (len(server.registered), server.sent) == (3, 1)
        held.set()
        await late
        await ask(triton, numbers(LARGE, 3))
        assert (len(server.registered), len(server.regions), server.sent) == (3, 1, 2)

    run(use)


def test_a_call_that_is_given_up_while_the_server_is_told_leaves_nothing() -> None:
    async def use(triton: Triton, server: Server) -> None:
        server.telling = asyncio.Event()
        given_up = asyncio.create_task(ask(triton, numbers(LARGE)))
        await server.holds.wait()
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        server.telling = None
        await ask(triton, numbers(LARGE))
        assert (server.shared, len(server.regions)) == (1, 1)
        assert mapped() == 2, "one region, here and in the server"

    run(use)


def test_to_a_server_without_shared_memory_all_is_sent() -> None:
    async def use(triton: Triton, server: Server) -> None:
        server.knows_none = True
        for _ in range(2):
            await ask(triton, numbers(LARGE))
        assert (server.registered, server.sent) == ([], 2)

    run(use)


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT])
def test_to_a_server_that_cannot_open_our_memory_all_is_sent(code: grpc.StatusCode) -> None:
    async def use(triton: Triton, server: Server) -> None:
        server.refusal = code
        for _ in range(3):
            await ask(triton, numbers(LARGE))
        assert (len(server.registered), server.shared, server.sent) == (1, 0, 3)

    run(use)


def test_a_server_that_is_away_when_it_is_told_is_an_outage_and_told_later() -> None:
    async def use(triton: Triton, server: Server) -> None:
        server.refusal = grpc.StatusCode.UNAVAILABLE
        with pytest.raises(Outage):
            await ask(triton, numbers(LARGE))
        server.refusal = None
        await ask(triton, numbers(LARGE))
        assert (server.shared, server.sent) == (1, 0)

    run(use)


def test_where_there_is_no_room_for_a_region_all_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)

    async def use(triton: Triton, server: Server) -> None:
        await ask(triton, numbers(LARGE))
        assert (server.registered, server.sent) == ([], 1)

    run(use)


def test_what_a_predecessor_left_is_removed_and_nobody_elses() -> None:
    async def use(triton: Triton, server: Server) -> None:
        left = {f"tidemill-{OWNER}-dead": mmap.mmap(-1, 4096), "tidemill-other-0": mmap.mmap(-1, 4096)}
        server.regions.update(left)
        await asyncio.gather(*(ask(triton, numbers(LARGE, seed)) for seed in range(3)))
        assert left.keys() & server.regions.keys() == {"tidemill-other-0"}
        assert len(server.regions) == 4
        del server.regions["tidemill-other-0"]

    run(use)


def test_a_call_that_is_given_up_spoils_no_later_one() -> None:
    async def use(triton: Triton, server: Server) -> None:
        await ask(triton, numbers(LARGE))
        server.held = asyncio.Event()
        given_up = asyncio.create_task(ask(triton, numbers(LARGE, 1)))
        await server.holds.wait()
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        held, server.held = server.held, None
        later = asyncio.create_task(ask(triton, numbers(LARGE, 2)))
        held.set()
        await later
        assert len(server.registered) == 1

    run(use)


@pytest.mark.stack
def test_triton_answers_from_shared_memory_as_it_answers_what_is_sent_also_after_it_was_killed(
    tmp_path: Path,
) -> None:
    models_dir, store = tmp_path / "models", ArtifactStore(tmp_path / "artifacts")
    write_toy(models_dir)
    version = write_version(store, models_dir, "1.0")
    spec = load_spec(models_dir / "toy")
    repeats = LEAST_BYTES // version.inputs["dense"].nbytes + 1
    tensors = {name: np.concatenate([array] * repeats) for name, array in version.inputs.items()}
    ids = len(version.inputs["text_ids"])
    tensors["text_offsets"] += np.repeat(np.arange(repeats, dtype=np.int32) * ids, len(version.scores))
    expected = np.concatenate([version.scores] * repeats)
    process = described(tmp_path, models_dir, store.root)
    url = f"127.0.0.1:{process.grpc_port}"

    async def same(triton: Triton) -> int:
        scores = await triton.infer(spec, version.artifact, tensors, len(expected))
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        async with InferenceServerClient(url) as client:
            return len((await client.get_system_shared_memory_status()).regions)

    async def main() -> None:
        triton, sending = Triton(url, OWNER), Triton(url)
        try:
            with started(process, tmp_path / "log") as running:
                assert await same(sending) == 0
                assert [await same(triton), await same(triton)] == [1, 1]
                running.kill()
            with pytest.raises(Outage):
                await triton.infer(spec, version.artifact, tensors, len(expected))
            with started(process, tmp_path / "log"):
                await asyncio.wait_for(_reached(triton, same), 30)
                assert await same(triton) == 1, "what it does not know is sent once, and then it is told"
                successor = Triton(url, OWNER)
                assert await same(successor) == 1, "what the one before it had is removed"
                assert [await same(triton), await same(triton)] == [1, 2], "and it takes another region"
                await successor.close()
        finally:
            await triton.close()
            await sending.close()

    asyncio.run(main())


async def _reached(triton: Triton, ask_it: Callable[[Triton], Awaitable[int]]) -> None:
    """A channel that saw the server go looks for it at most once a second."""
    while True:
        try:
            await ask_it(triton)
            return
        except Outage:
            await asyncio.sleep(0.05)
