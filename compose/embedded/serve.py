"""The supervisor as a process: `python -m compose.embedded.serve --data DIR …`, started by `up`, the demo and the tests.

It holds DATA/run/lock while it lives, writes DATA/run/supervisor.json, and serves `/status` and `/metrics` on loopback. Whoever starts it
passes one end of a socket: the supervisor says there, in JSON lines, that it has started or why it cannot, and ends with its parent
when the other end closes, unless it was told to go on alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from compose.embedded import stack
from compose.embedded.ports import HOST
from compose.embedded.running import AlreadyRunning, owner_pid, run_dir
from compose.embedded.supervisor import Supervisor, write_json
from compose.embedded.variation import variation
from schemas.errors import UserError

DISK_FLOOR_BYTES = 2 << 30
GO_ON_ALONE = "detach"


class DiskFull(UserError):
    exit_code = 5


class SetupFailed(UserError):
    exit_code = 6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m compose.embedded.serve")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--ports", choices=("fixed", "ephemeral"), default="fixed")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument(
        "--services", default=",".join(stack.SERVICES), help="comma-separated; empty: infrastructure only"
    )
    parser.add_argument("--parent-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    parent = socket.socket(fileno=options.parent_fd)
    try:
        if not options.models.is_dir():
            raise UserError(f"{options.models}: no such folder, expected one with a folder per model")
        services = [name for name in options.services.split(",") if name]
        asyncio.run(serve(options.data.resolve(), options.ports, options.models, services, parent))
    except UserError as error:
        tell(parent, {"failed": str(error), "exit_code": error.exit_code})
        print(f"tidemill: {error}", file=sys.stderr)
        return error.exit_code
    return 0


async def serve(
    data_dir: Path, ports_mode: str, models_dir: Path, services: Sequence[str], parent: socket.socket
) -> None:
    """Runs the stack until SIGTERM, SIGINT, the parent's end, or a failure that no restart mends."""
    run_dir(data_dir).mkdir(parents=True, exist_ok=True)
    (data_dir / "logs").mkdir(exist_ok=True)
    (data_dir / "artifacts").mkdir(exist_ok=True)
    with held_lock(data_dir):
        check_disk(data_dir)
        ports = stack.choose_ports(ports_mode)
        loop = asyncio.get_running_loop()
        end: asyncio.Future[str] = loop.create_future()  # "" or what failed

        def finish(failure: str = "") -> None:
            if not end.done():
                end.set_result(failure)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, finish)
        following = loop.create_task(follow_parent(parent, finish))
        supervisor = Supervisor(
            stack.processes(data_dir, ports, models_dir, services),
            data_dir / "logs",
            finish,
            held=variation().held,
        )
        description = {
            "pid": os.getpid(),
            "data": str(data_dir),
            "started_at": time.time(),
            "ports": asdict(ports),
            "models": str(models_dir),
        }
        async with status_server(supervisor, description) as url:
            description["status_url"] = url
            write_json(run_dir(data_dir) / "supervisor.json", description)
            supervisor.start()
            tell(parent, {"started": description})
            failure = await end
            following.cancel()
            await supervisor.stop()
        (run_dir(data_dir) / "supervisor.json").unlink()
        if failure:
            raise SetupFailed(failure)


async def follow_parent(parent: socket.socket, finish: Callable[[], None]) -> None:
    parent.setblocking(False)
    loop = asyncio.get_running_loop()
    while said := await loop.sock_recv(parent, 64):
        if said.decode().strip() == GO_ON_ALONE:
            return
    finish()


def tell(parent: socket.socket, message: dict[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a parent that has gone needs no answer
        parent.sendall(json.dumps(message).encode() + b"\n")


@contextlib.contextmanager
def held_lock(data_dir: Path) -> Iterator[None]:
    """A POSIX record lock: the kernel drops it with the process, and can tell whoever asks which process has it."""
    with (run_dir(data_dir) / "lock").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyRunning(
                f"a stack already runs on {data_dir} (pid {owner_pid(data_dir)}); see `tidemill status`, end it with `tidemill down`"
            ) from None
        yield


def check_disk(data_dir: Path) -> None:
    free = shutil.disk_usage(data_dir).free
    if free < DISK_FLOOR_BYTES:
        raise DiskFull(
            f"{data_dir} has {free / 2**30:.1f} GiB free, at least {DISK_FLOOR_BYTES / 2**30:.0f} GiB are needed; free some or use --data"
        )


@contextlib.asynccontextmanager
async def status_server(supervisor: Supervisor, description: dict[str, object]) -> AsyncIterator[str]:
    async def status(_: web.Request) -> web.Response:
        return web.json_response(
            {**description, "ready": supervisor.is_ready, "processes": supervisor.status()}
        )

    registry = CollectorRegistry()
    registry.register(ProcessMetrics(supervisor))

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    async def hold(request: web.Request) -> web.Response:
        name = request.match_info["process"]
        if name not in supervisor.records:
            raise web.HTTPNotFound(text=f"no process {name!r}")
        await supervisor.hold(name)
        return web.Response(status=204)

    async def release(request: web.Request) -> web.Response:
        name = request.match_info["process"]
        if name not in supervisor.records:
            raise web.HTTPNotFound(text=f"no process {name!r}")
        supervisor.release(name)
        return web.Response(status=204)

    app = web.Application()
    app.add_routes(
        [
            web.get("/status", status),
            web.get("/metrics", metrics),
            web.post("/processes/{process}/hold", hold),
            web.post("/processes/{process}/release", release),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0, shutdown_timeout=1)
    await site.start()
    try:
        yield f"http://{HOST}:{runner.addresses[0][1]}/status"
    finally:
        await runner.cleanup()


class ProcessMetrics:
    """The supervisor's view of its processes, for Prometheus."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(
            "tidemill_process_ready", "1 while the process is ready.", labels=["process"]
        )
        restarts = GaugeMetricFamily("tidemill_process_restarts", "Restarts since `up`.", labels=["process"])
        uptime = GaugeMetricFamily(
            "tidemill_process_uptime_seconds", "Age of the running process.", labels=["process"]
        )
        for row in self._supervisor.status():
            ready.add_metric([row["process"]], float(row["state"] in ("ready", "done")))
            restarts.add_metric([row["process"]], row["restarts"])
            uptime.add_metric([row["process"]], row["uptime_sec"] or 0.0)
        yield from (ready, restarts, uptime)


if __name__ == "__main__":
    sys.exit(main())
