"""A broker and a ClickHouse engine with the topics and tables of one small model, for tests that break them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from compose.setup import set_up
from runtime.settings import Settings
from tests.compose.clickhouse_server import PASSWORD, ServerProcess, start, stop
from tests.services import broker


@contextlib.contextmanager
def deployed(folder: Path, model: str, spec: str) -> Iterator[tuple[Settings, ServerProcess]]:
    """Settings and engine; the engine's data lies in `folder/clickhouse`."""
    models_dir = folder / "models"
    (models_dir / model).mkdir(parents=True)
    (models_dir / model / "model.toml").write_text(spec)
    (folder / "clickhouse").mkdir()
    with broker(folder) as address:
        engine = start(folder / "clickhouse")
        try:
            settings = Settings(
                kafka_bootstrap=address,
                clickhouse_url=f"http://127.0.0.1:{engine.port}",
                clickhouse_user="tidemill",
                clickhouse_password=PASSWORD,
                models_dir=models_dir,
            )
            set_up(settings)
            yield settings, engine
        finally:
            stop(engine)
