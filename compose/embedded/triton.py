"""tritonserver from the `nvidia-pytriton` wheel: Python backend, explicit model control, loopback only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compose.embedded import parts
from compose.embedded.process import Broken, NotReady, Start

WriteRepository = Callable[[Path], Sequence[str]]

STUB_DIED = "Stub process"
"""How the server begins to say that a stub died, unlike a model whose code raised."""
LOAD_TIMEOUT_SEC = 30
STUB_GONE_SEC = 7.0
"""A server that does not listen yet, and whose stub has been gone for so long, waits for it for ever. Most deaths it notices after 5 s."""
STUBLESS_SEC = 60.0
"""As long, one that has had no stub yet: on a cold disk the server itself takes a while to begin."""


@dataclass
class Triton:
    """The server as a process. `write_repository` fills the model repository before each start and returns the models' names."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    repository_dir: Path
    write_repository: WriteRepository
    clock: Callable[[], float] = time.monotonic
    models: list[str] = field(default_factory=list)
    """Filled by `start`: what the probe waits for."""
    _seen: set[str] = field(default_factory=set)
    """Models whose stub was seen alive since the start."""
    _stubless_since: float | None = None

    def start(self) -> Start:
        self.repository_dir.mkdir(parents=True, exist_ok=True)
        self._remove_stale_memory()
        self._seen.clear()
        self._stubless_since = None
        self.models[:] = self.write_repository(self.repository_dir)
        server = parts.path("tritonserver") / "pytriton" / "tritonserver"
        argv = [
            str(server / "bin" / "tritonserver"),
            f"--model-repository={self.repository_dir}",
            f"--backend-directory={server / 'backends'}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self.models),
            # Without this each model's interpreter, with torch, is started once more only to ask for the configuration.
            "--disable-auto-complete-config",
            "--exit-on-error=false",  # one broken model must not take the others down; the probe names it
            "--exit-timeout-secs=5",
            f"--http-address={self.host}", f"--http-port={self.http_port}",
            f"--grpc-address={self.host}", f"--grpc-port={self.grpc_port}",
            f"--metrics-address={self.host}", f"--metrics-port={self.metrics_port}",
            "--pinned-memory-pool-byte-size=0",
            f"--backend-config=python,shm-region-prefix-name={self._memory_prefix}",
            "--log-verbose=0",
        ]  # fmt: skip
        return Start(argv, self._environment())

    def _environment(self) -> dict[str, str]:
        libraries = [
            parts.path("tritonserver") / "nvidia_pytriton.libs",
            Path(sysconfig.get_config_var("LIBDIR")),
        ]
        return {
            # The backend's stub ignores PYTHONPATH: it takes the packages of the first python3 on PATH.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "OMP_NUM_THREADS": "1",
        }

    @property
    def _memory_prefix(self) -> str:
        folder = hashlib.sha256(str(self.repository_dir.resolve()).encode()).hexdigest()
        return f"tidemill-{folder[:12]}-"

    def _remove_stale_memory(self) -> None:
        """A killed server leaves its shared memory behind, 1 MB and more a model. One stack at a time has our folder, and so our prefix."""
        for region in Path("/dev/shm").glob(f"{self._memory_prefix}*"):
            region.unlink(missing_ok=True)

    def ready(self) -> Mapping[str, Any]:
        """Every model is loaded. That a version answers rightly is the golden inference of gateway and control."""
        url = f"http://{self.host}:{self.http_port}/v2/repository/index"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=3) as answer:
                index = {model["name"]: model for model in json.load(answer)}
        except OSError:
            # It listens once every model is loaded, or could not be.
            self._look_for_stubs()
            raise
        for name in self.models:
            model = index.get(name, {})
            if model.get("state") != "READY":
                reason = model.get("reason") or model.get("state") or "not loaded yet"
                if STUB_DIED in reason:
                    self._load(name)
                raise NotReady(f"model {name}: {str(reason).strip().splitlines()[-1]}")
        dead = sorted(set(self.models) - self._living())
        if dead:
            # The server goes on saying that it is ready, and never starts a stub again.
            raise Broken(f"the Python stub of {', '.join(dead)} is dead")
        return {"models": list(self.models)}

    def _look_for_stubs(self) -> None:
        """Raises `Broken` if one that was there has been gone, or none been there, for too long."""
        living = self._living() & set(self.models)
        gone = self._seen - living
        self._seen |= living
        if living and not gone:
            self._stubless_since = None
            return
        now = self.clock()
        if self._stubless_since is None:
            self._stubless_since = now
        if now >= self._stubless_since + (STUB_GONE_SEC if gone else STUBLESS_SEC):
            who = ", ".join(sorted(gone)) or "every model"
            raise Broken(f"the Python stub of {who} died while it was loaded")

    def _load(self, name: str) -> None:
        """Load a model again whose stub was killed while it was loaded: the server does not, and the other models go on meanwhile."""
        url = f"http://{self.host}:{self.http_port}/v2/repository/models/{name}/load"
        with urllib.request.urlopen(
            urllib.request.Request(url, data=b"{}", method="POST"), timeout=LOAD_TIMEOUT_SEC
        ):
            pass

    def _living(self) -> set[str]:
        """Models whose stub lives. Its command line names our shared memory, and its instance: `<model>_<group>_<number>`."""
        ours, found = self._memory_prefix.encode(), set()
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has gone meanwhile
                arguments = file.read_bytes().split(b"\0")
                if any(argument.startswith(ours) for argument in arguments):
                    found |= {
                        argument.decode(errors="replace").rsplit("_", 2)[0]
                        for argument in arguments
                        if argument.count(b"_") >= 2
                    }
        return found
