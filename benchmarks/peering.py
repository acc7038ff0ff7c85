"""Peers: their environment, and how each is run over a backlog and timed by what it produces.

Each asks Triton as its documentation shows: Quix Streams for each message, Bytewax for each batch that its source reads, Faust for each message, and
once more for each run that `take_events` gives. All are spared what ours does beside: none writes observations, none has transactions (their
defaults), none standardises features. What cannot be installed or does not run is named with its reason, and has no figure.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.load import Backlog, Bodies, produce_backlog
from benchmarks.meter import Produced, Run, StageFailed, watch
from benchmarks.report import progress
from benchmarks.stages import Bench, Running, running, start_group
from compose.embedded.parts import ROOT, STATE_DIR
from compose.embedded.ports import HOST, free_ports

HERE: Final = Path(__file__).parent / "peers"
LOCK: Final = HERE / "requirements.lock"
SECONDS: Final = 8.0
"""How long a peer is watched from its first answer on, if it has not finished before."""
MLSERVER_ROWS: Final = 8000


@dataclass(frozen=True)
class Peer:
    """One of them. `module` is run in the peers' environment."""

    key: str
    name: str
    arguments: tuple[str, ...]
    """After the interpreter."""


PEERS: Final = (
    Peer("mlserver", "MLServer, its Kafka server", ("-c", "import sys; from mlserver.cli import main; sys.exit(main())", "start")),
    Peer("quix_per_message", "Quix Streams, tritonclient per message", ("-m", "benchmarks.peers.quix_per_message")),
    Peer(
        "faust_per_message", "Faust, tritonclient per message",
        ("-m", "benchmarks.peers.faust_per_message", "worker", "-l", "warn"),
    ),
    Peer(
        "faust_batched", "Faust, tritonclient batched",
        ("-m", "benchmarks.peers.faust_batched", "worker", "-l", "warn"),
    ),
    Peer(
        "bytewax_batched", "Bytewax, tritonclient batched",
        ("-m", "bytewax.run", "benchmarks.peers.bytewax_batched:flow"),
    ),
)  # fmt: skip


def interpreter() -> Path:
    """Python of the peers' environment, set up first if it is not there or the lock has changed.

    Raises:
        StageFailed: it cannot be installed; the line is pip's.
    """
    folder = STATE_DIR / "peers"
    stamp = folder / "lock.sha256"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    progress(f"installing the peers into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    _call([sys.executable, "-m", "venv", str(folder)])
    _call([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(LOCK)])
    stamp.write_text(wanted)
    return python


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise StageFailed(f"the peers' environment: {lines[-1]}")


def measure(at: Bench, peer: Peer, python: Path, artifact: str, backlog: Backlog) -> Run:
    """Run a peer over the backlog from its start, for at most `SECONDS` after its first answer.

    Raises:
        StageFailed: it ended, or did nothing.
    """
    if peer.key == "mlserver":
        return _measure_mlserver(at, peer, python)
    mark = uuid.uuid4().hex[:8]
    group, predictions = f"bench-{peer.key}-{mark}", f"bench-{peer.key}-{mark}-predictions"
    at.create_topics([predictions])
    start_group(at, group, backlog)
    environment = _environment() | {
        "PEER_BOOTSTRAP": at.settings.kafka_bootstrap, "PEER_TRITON": at.settings.triton_grpc_url,
        "PEER_MODEL": backlog.topic.partition(".")[2], "PEER_ARTIFACT": artifact, "PEER_REQUESTS": backlog.topic,
        "PEER_PREDICTIONS": predictions, "PEER_GROUP": group,
    }  # fmt: skip
    return _follow(at, peer, [str(python), *peer.arguments], environment, predictions, backlog.records)


def _follow(
    at: Bench, peer: Peer, command: list[str], environment: Mapping[str, str], topic: str, records: int,
    started: Callable[[Running], None] = lambda process: None,
) -> Run:  # fmt: skip
    produced = Produced(at.settings, topic)
    process = Running(peer.key, command, environment, at.folder)
    try:
        with running(process):
            started(process)
            return watch(
                produced, records, {peer.key: process.pid} | at.pids(), limit_sec=SECONDS, alive=process.check
            )
    finally:
        produced.close()


def _measure_mlserver(at: Bench, peer: Peer, python: Path) -> Run:
    """Its consumer has no group and begins at the end: the backlog is written once it is there."""
    mark = uuid.uuid4().hex[:8]
    requests, predictions = f"bench-mlserver-{mark}-requests", f"bench-mlserver-{mark}-predictions"
    at.create_topics([requests, predictions])
    folder = at.folder / f"mlserver-{mark}"
    folder.mkdir()
    http, grpc, metrics = free_ports(3)
    settings = {
        "host": HOST, "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0, "debug": False,
        "kafka_enabled": True, "kafka_servers": at.settings.kafka_bootstrap, "kafka_topic_input": requests,
        "kafka_topic_output": predictions,
    }  # fmt: skip
    model = {"name": "perceptron", "implementation": "benchmarks.peers.mlserver_model.Perceptron"}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))

    def begin(process: Running) -> None:
        _wait_for(f"http://{HOST}:{http}/v2/models/perceptron/ready", process)
        produce_backlog(at.settings, requests, _mlserver_bodies(), MLSERVER_ROWS)

    return _follow(
        at,
        peer,
        [str(python), *peer.arguments, str(folder)],
        _environment(),
        predictions,
        MLSERVER_ROWS,
        begin,
    )


def _mlserver_bodies() -> Bodies:
    """Requests of 8 floats in the Open Inference Protocol."""
    tensor = {"name": "x", "shape": [1, 8], "datatype": "FP32"}
    values = [
        json.dumps({"inputs": [{**tensor, "data": [(i * 7 + j) % 100 / 100 for j in range(8)]}]}).encode()
        for i in range(100)
    ]
    return Bodies(values, 1, [("mlserver-model", b"perceptron")])


def _wait_for(url: str, process: Running, timeout_sec: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_sec
    while True:
        process.check()
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise StageFailed(
                    f"{process.name} does not answer at {url} after {timeout_sec:.0f} s"
                ) from None
        time.sleep(0.1)


def _environment() -> dict[str, str]:
    """What a peer's process gets beside its own variables: our modules' path, and its own programs first."""
    path = f"{STATE_DIR / 'peers' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {"PYTHONPATH": str(ROOT), "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
