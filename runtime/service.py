"""How every service starts, says how it is, and stops.

`run(name, main)` is the whole of a service's `__main__`: settings, logging, `/health` and `/metrics`, signals, exit codes:
0 stopped as told, 1 crashed (the supervisor restarts it), 2 a person's mistake, 3 fenced by a successor.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import msgspec
from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from runtime.settings import Settings, load_settings
from schemas.errors import Fenced, UserError

log = logging.getLogger(__name__)

Stop = threading.Event
"""Set once, when the service is told to stop. `stop.wait(timeout)` instead of sleeping."""

CRASHED, MISTAKEN, FENCED = 1, 2, 3
PROGRESS_LIMIT_SEC: Final = 60.0


class Stage(msgspec.Struct, kw_only=True):
    """What `tidemill status` shows of one stage (one consumer of one topic, or one model's route)."""

    lag_records: int = 0
    """Records readable and not yet committed."""
    oldest_age_sec: float = 0.0
    """Age of the oldest of them."""
    state: str = "running"
    """running, paused (a dependency is away), halted (a person is needed), waiting."""
    note: str = ""


class Health:
    """What a service says of itself, from any thread. Ready means: it does its work, not: it was started."""

    def __init__(self, service: str) -> None:
        self.service = service
        self._lock = threading.Lock()
        self._ready = False
        self._stages: dict[str, Stage] = {}
        self._detail: dict[str, Any] = {}
        self._last_error: str | None = None
        self._last_error_at: float | None = None
        self._started = time.time()

    def set_ready(self, ready: bool = True) -> None:
        """Ready, or no longer."""
        with self._lock:
            self._ready = ready

    def stage(self, name: str, stage: Stage) -> None:
        """Replace what is known of a stage."""
        with self._lock:
            self._stages[name] = stage

    def drop_stage(self, name: str) -> None:
        """Forget a stage, such as a partition that went elsewhere."""
        with self._lock:
            self._stages.pop(name, None)

    def detail(self, **values: Any) -> None:
        """Add or replace free detail (JSON types)."""
        with self._lock:
            self._detail.update(values)

    def error(self, message: str) -> None:
        """Remember the last error; log it too."""
        log.warning("%s", message)
        with self._lock:
            self._last_error, self._last_error_at = message, time.time()

    def snapshot(self) -> dict[str, Any]:
        """What `/health` answers."""
        with self._lock:
            return {
                "service": self.service,
                "ready": self._ready,
                "uptime_sec": round(time.time() - self._started, 1),
                "stages": {name: msgspec.to_builtins(stage) for name, stage in self._stages.items()},
                "detail": dict(self._detail),
                "last_error": self._last_error,
                "last_error_at": self._last_error_at,
            }


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def run(service: str, main: Callable[[Settings, Health, Stop], None]) -> int:
    """Run `main` until it returns or the process is told to stop; return the exit code."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(service))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    stop, health = Stop(), Health(service)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = load_settings()
        logging.getLogger().setLevel(settings.log_level)
        server = serve_health(settings, health)
        try:
            main(settings, health, stop)
        finally:
            server.shutdown()
    except UserError as error:
        log.error("%s", error)
        return MISTAKEN
    except Fenced as error:
        log.warning("stopped: %s", error)
        return FENCED
    except Exception:
        log.exception("crashed")
        return CRASHED
    return 0


def serve_health(settings: Settings, health: Health) -> ThreadingHTTPServer:
    """Serve `/health` (503 until ready) and `/metrics` in a thread; `server.shutdown()` ends it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY))
            elif self.path == "/health":
                snapshot = health.snapshot()
                self._answer(
                    200 if snapshot["ready"] else 503, "application/json", json.dumps(snapshot).encode()
                )
            else:
                self._answer(404, "text/plain", b"expected /health or /metrics\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            # Who asked may not have waited.
            with suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            log.debug(format, *args)

    server = ThreadingHTTPServer((settings.http_host, settings.http_port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    health.detail(http_port=server.server_address[1])
    return server
