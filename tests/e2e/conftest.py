"""A workshop: a stack of its own that serves what docs/models.md declares, two toys and `electricity`, made by the commands of that page."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client as Warehouse

from compose.embedded import parts, running, stack
from runtime.settings import Settings
from tests.e2e import page
from tests.e2e.collector import Collector
from tests.e2e.toys import World, write_toys
from tidemill import Client
from warehouse.client import connect

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"
QUICK_SPANS = {"OTEL_BSP_SCHEDULE_DELAY": "100"}


class Workshop:
    """A folder as a user has it after cloning: `./tidemill`, `triton_models/`, the fetched data sets."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.data_dir = folder / ".tidemill" / "data"
        self.models_dir = folder / "triton_models"
        self.models_dir.mkdir()
        launcher = folder / "tidemill"
        launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m cli "$@"\n')
        launcher.chmod(0o755)
        (folder / ".tidemill" / "parts").mkdir(parents=True)
        (folder / ".tidemill" / "parts" / "datasets").symlink_to(parts.path("datasets"))
        (folder / ".venv" / "bin").mkdir(parents=True)
        python = folder / ".venv" / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')  # a link would not find its packages
        python.chmod(0o755)
        kept = (name for name in os.environ if not name.startswith("TIDEMILL_") or name == "TIDEMILL_CACHE")
        self.environment = {name: os.environ[name] for name in kept} | {
            "TIDEMILL_DATA": str(self.data_dir),
            "TIDEMILL_MODELS_DIR": str(self.models_dir),
            "TIDEMILL_PORTS": "ephemeral",
            **environment,
        }
        self.said: dict[str, str] = {}
        """What each block of shell commands printed."""

    @property
    def settings(self) -> Settings:
        return stack.running_settings(self.data_dir)

    def run(self, commands: str, **environment: str) -> str:
        """Run shell commands in the folder; what they printed. They have to succeed."""
        done = subprocess.run(
            ["bash", "-e", "-c", commands], cwd=self.folder, env=self.environment | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        self.said[commands] = done.stdout
        return done.stdout

    def tidemill(self, *arguments: str) -> dict[str, Any]:
        """A command's answer with --json."""
        done = subprocess.run(
            ["./tidemill", *arguments, "--json"], cwd=self.folder, env=self.environment, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found

    def process(self, name: str) -> dict[str, Any]:
        """A process of the stack, as the supervisor sees it."""
        rows: list[dict[str, Any]] = running.status(self.data_dir)["processes"]
        return next(row for row in rows if row["process"] == name)

    def kill(self, name: str) -> None:
        """SIGKILL; the supervisor starts another."""
        os.kill(self.process(name)["pid"], signal.SIGKILL)


@pytest.fixture(scope="package")
def collector() -> Iterator[Collector]:
    """Where the workshop's services send their spans."""
    with Collector() as running_collector:
        yield running_collector


@pytest.fixture(scope="package")
def workshop(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Workshop]:
    """Steps 1 to 3 of the page and its `up` are done. Ended whatever happens."""
    found = Workshop(
        tmp_path_factory.mktemp("workshop"), {"TIDEMILL_OTLP_ENDPOINT": collector.url, **QUICK_SPANS}
    )
    write_toys(found.models_dir)
    shutil.copytree(running.DEFAULT_MODELS_DIR / "electricity", found.models_dir / "electricity")
    for name, text in page.files(PAGE).items():
        (found.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (found.folder / name).write_text(text)
    try:
        for block in page.commands(PAGE):
            found.run(block)
            if "./tidemill up" in block:
                break
        yield found
    finally:
        running.end(found.data_dir)


@pytest.fixture(scope="package")
def served(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The toy `automatic`, with a version 1.0 that is wrong about everything."""
    path = World(seed=1).file(tmp_path_factory.mktemp("train") / "file.csv", 400, flipped=True)
    assert workshop.tidemill("train", "automatic", "--from", str(path), "--seed", "1")["version"] == "1.0"
    return "automatic"


@pytest.fixture(scope="package")
def client(workshop: Workshop) -> Iterator[Client]:
    with Client(workshop.settings) as open_client:
        yield open_client


@pytest.fixture(scope="package")
def analyst(workshop: Workshop) -> Iterator[Warehouse]:
    """As an analyst asks: read-only."""
    open_client = connect(workshop.settings.clickhouse_url)
    yield open_client
    open_client.close()
