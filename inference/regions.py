"""Memory that is shared with Triton: large tensors are written where the server reads them, instead of being sent.

On its way through gRPC a tensor is copied five times and sent through a socket. A call with 1,337 rows of 784 numbers costs client and
server 9 µs of CPU a row so, and 3.5 through shared memory; one with 4,096 rows of 8 costs the same either way, and smaller ones are sent.

A region is only ever written between two calls of ours. A call that was given up may still be read by the server when its region is used
again: what it then reads is wrong, and nobody waits for its answer.
"""

from __future__ import annotations

import logging
import mmap
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

log = logging.getLogger(__name__)

LEAST_BYTES: Final = 256 * 1024
"""Tensors of a call, from which on they are shared."""
REGION_BYTES: Final = 4 * 1024 * 1024
"""Least size of a region: most calls fit into it."""
FOLDER: Final = Path("/dev/shm")
"""Where shm_open(3) looks for names."""
_ALIGNED_BYTES: Final = 64
_TIMEOUT_SEC: Final = 5.0
_AWAY: Final = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.CANCELLED")


class Region:
    """Memory under a name that the server knows."""

    def __init__(self, name: str, size_bytes: int) -> None:
        """Raises `OSError`: there is no such memory here, or too little of it."""
        self.name = name
        self.size_bytes = size_bytes
        self._path = FOLDER / name
        handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            # All of it at once: to write where there is no room left would end the process.
            os.posix_fallocate(handle, 0, size_bytes)
            self._memory = mmap.mmap(handle, size_bytes)
        except OSError:
            self.unlink()
            raise
        finally:
            os.close(handle)

    def unlink(self) -> None:
        """Nobody else can open it; who has, keeps it. So nothing is left of it when both processes are gone."""
        self._path.unlink(missing_ok=True)

    def write(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """Write them, and return where each begins."""
        places: dict[str, int] = {}
        at = 0
        for name, tensor in tensors.items():
            np.ndarray(tensor.shape, tensor.dtype, self._memory, at)[...] = tensor
            places[name] = at
            at += aligned(tensor.nbytes)
        return places


class Regions:
    """The regions of one process, of which each call borrows one. Used on the event loop only."""

    def __init__(self, client: InferenceServerClient, owner: str) -> None:
        """`owner` is the same whenever the process is started anew: what its predecessor left with the server is removed."""
        self._client = client
        self._prefix = f"tidemill-{owner}-"
        self._known: set[Region] = set()
        self._free: list[Region] = []
        self._refused = False
        """Whether the server cannot open our memory, being on another machine or in another container: then everything is sent."""
        self._is_first = True
        """Whether regions of a predecessor may be left."""

    async def borrow(self, tensors: Iterable[NDArray[Any]]) -> Region | None:
        """A region with room for `tensors`; None where they are to be sent.

        Raises:
            InferenceServerException: the server is away.
        """
        size_bytes = sum(aligned(tensor.nbytes) for tensor in tensors)
        if size_bytes < LEAST_BYTES or self._refused:
            return None
        for place, region in enumerate(self._free):
            if region.size_bytes >= size_bytes:
                return self._free.pop(place)
        if self._free:  # a larger one takes its place: there are never more than calls at once
            small = self._free.pop()
            self._known.discard(small)
            await self._unregister(small.name)
        try:
            if self._is_first:
                await self._remove_predecessors()
                self._is_first = False
            return await self._made(max(REGION_BYTES, size_bytes))
        except InferenceServerException as error:
            if str(error.status()) in _AWAY:
                raise
            self._refuse(str(error.message()))
        except OSError as error:
            self._refuse(f"{FOLDER}: {error.strerror}")
        return None

    def give_back(self, region: Region) -> None:
        """No call of ours needs it any more."""
        if region in self._known:
            self._free.append(region)

    def forget(self, region: Region) -> None:
        """The server does not know it: it was restarted, and knows none that it was told of before."""
        if region in self._known:
            self._known.clear()
            self._free.clear()

    async def close(self) -> None:
        """Let the server forget them."""
        while self._free:
            await self._unregister(self._free.pop().name)

    async def _made(self, size_bytes: int) -> Region:
        region = Region(f"{self._prefix}{uuid.uuid4().hex}", size_bytes)
        self._known.add(region)
        try:
            await self._client.register_system_shared_memory(
                region.name, f"/{region.name}", size_bytes, client_timeout=_TIMEOUT_SEC
            )
        except BaseException:  # a call that is given up, too, leaves none that nobody would give back
            self._known.discard(region)
            raise
        finally:
            region.unlink()
        return region

    def _refuse(self, why: str) -> None:
        self._refused = True
        log.warning("Triton shares no memory with this process, tensors are sent: %s", why)

    async def _remove_predecessors(self) -> None:
        """The server keeps the memory of a process that was killed. One that only seems to be is told so, and takes other regions."""
        found = await self._client.get_system_shared_memory_status(client_timeout=_TIMEOUT_SEC)
        ours = {region.name for region in self._known}
        for name in found.regions:
            if name.startswith(self._prefix) and name not in ours:
                await self._unregister(name)

    async def _unregister(self, name: str) -> None:
        try:
            await self._client.unregister_system_shared_memory(name, client_timeout=_TIMEOUT_SEC)
        except InferenceServerException as error:
            # It is away, or still reads it: a later start removes it.
            log.info("%s: %s", name, error.message())


def is_forgotten(error: InferenceServerException) -> bool:
    """Whether a call failed because the server does not know its region."""
    message = str(error.message())
    return "Unable to find" in message and "shared memory region" in message


def aligned(size_bytes: int) -> int:
    """What a tensor takes of a region."""
    return -(-size_bytes // _ALIGNED_BYTES) * _ALIGNED_BYTES
