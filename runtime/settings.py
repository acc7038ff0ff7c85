"""Settings of a service: typed, from `TIDEMILL_*` environment variables, checked at start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from schemas.errors import UserError

PREFIX = "TIDEMILL_"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the parts are. Every field has its environment variable: `kafka_bootstrap` ← `TIDEMILL_KAFKA_BOOTSTRAP`."""

    kafka_bootstrap: str = "127.0.0.1:9092"
    triton_grpc_url: str = "127.0.0.1:8001"
    triton_http_url: str = "http://127.0.0.1:8000"
    clickhouse_url: str = "http://127.0.0.1:8123"
    clickhouse_user: str = "default"
    clickhouse_password: str = ""
    artifacts_dir: Path = Path(".tidemill/data/artifacts")
    models_dir: Path = Path("triton_models")
    slot: int = 0
    """Which replica of its service this process is: stable across restarts, part of its transactional id."""
    http_host: str = "127.0.0.1"
    http_port: int = 0
    """Port of `/health` and `/metrics`; 0 lets the system choose one."""
    otlp_endpoint: str = ""
    """OTLP over HTTP, such as http://127.0.0.1:4318; empty: no tracing and no cost."""
    trace_ratio: float = 1.0
    """Share of requests without a traceparent of their own that are traced."""
    log_level: str = "INFO"

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for a child process."""
        return {PREFIX + name.upper(): str(getattr(self, name)) for name in self.__struct_fields__}


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings in `environment` (by default the process's).

    Raises:
        UserError: names the variable, its value and what was expected.
    """
    environment = os.environ if environment is None else environment
    given = {
        name: environment[PREFIX + name.upper()]
        for name in Settings.__struct_fields__
        if PREFIX + name.upper() in environment
    }
    for name, value in given.items():
        try:
            msgspec.convert({name: value}, Settings, strict=False, dec_hook=_path)
        except msgspec.ValidationError as error:
            expected = str(error).partition(" - at ")[0]
            raise UserError(f"{PREFIX}{name.upper()}: found {value!r}: {expected}") from None
    return msgspec.convert(given, Settings, strict=False, dec_hook=_path)


def _path(kind: type, value: object) -> object:
    return kind(value)
