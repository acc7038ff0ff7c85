"""The versions in memory: each is loaded once, on a thread of its own, while the others go on answering."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

V = TypeVar("V")


class Versions(Generic[V]):
    """What `load` gave for each artifact. Nothing leaves by itself: only `unload` drops a version."""

    def __init__(self, load: Callable[[str], V]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._versions: dict[str, Future[V]] = {}
        # One thread: loading is short, and more of them would take the processor from the requests.
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")

    def get(self, artifact: str) -> V | None:
        """The version if it is in memory. Never waits."""
        future = self._versions.get(artifact)
        if future is None or not future.done() or future.exception() is not None:
            return None
        return future.result()

    def load(self, artifact: str) -> Future[V]:
        """The version, when it is loaded; joins a load that is under way. A failed load is tried anew by the next call."""
        with self._lock:
            future = self._versions.get(artifact)
            if future is None:
                future = self._versions[artifact] = self._loader.submit(self._loaded, artifact)
            return future

    def unload(self, artifact: str) -> None:
        """Drop the version from memory, if it is there."""
        with self._lock:
            self._versions.pop(artifact, None)

    def close(self) -> None:
        """Finish what is being loaded and stop."""
        self._loader.shutdown()

    def _loaded(self, artifact: str) -> V:
        try:
            return self._load(artifact)
        except BaseException:
            self.unload(artifact)
            raise
