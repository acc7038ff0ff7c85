"""A fault proxy in front of ClickHouse: it stops an INSERT of observations at a chosen point, so that a test can kill the sink exactly there."""

from __future__ import annotations

import http.client
import threading
from contextlib import suppress
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

MET: Final = b"INSERT INTO internal.observations "
HOP_BY_HOP: Final = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class Fault(Enum):
    """What happens to the next INSERT of observations: what else comes along, an alert of an earlier test, passes."""

    HOLD_REQUEST = "ClickHouse never sees it"
    HOLD_ANSWER = "ClickHouse has done it, the sink never learns"
    DROP_ANSWER = "ClickHouse has done it, the connection breaks"


class Proxy:
    """Forwards HTTP to `upstream_port`; `reached` is set when the armed fault has met its INSERT."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.reached = threading.Event()
        self._released = threading.Event()
        self._fault: Fault | None = None
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def arm(self, fault: Fault) -> None:
        """The next INSERT of observations meets `fault`."""
        with self._lock:
            self.reached.clear()
            self._released.clear()
            self._fault = fault

    def release(self) -> None:
        """Break the connections that are held."""
        self._released.set()

    def close(self) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def _take_fault(self) -> Fault | None:
        with self._lock:
            fault, self._fault = self._fault, None
            return fault

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self._body()
                fault = proxy._take_fault() if body.startswith(MET) else None
                if fault is Fault.HOLD_REQUEST:
                    self._hold()
                    return
                answer = self._forward(body)
                if fault is None and answer is not None:
                    with suppress(ConnectionError):  # the sink was killed meanwhile
                        self._answer(*answer)
                elif fault is Fault.HOLD_ANSWER:
                    self._hold()
                else:
                    proxy.reached.set()
                    self.close_connection = True

            def do_GET(self) -> None:
                self.do_POST()

            def _hold(self) -> None:
                proxy.reached.set()
                proxy._released.wait(60)
                self.close_connection = True

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = bytearray()
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return bytes(body)

            def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes] | None:
                headers = {
                    name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP
                }
                upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port, timeout=60)
                try:
                    upstream.request(self.command, self.path, body, headers)
                    response = upstream.getresponse()
                    return response.status, response.getheaders(), response.read()
                except (OSError, http.client.HTTPException):
                    return None  # ClickHouse is away: the sink's connection breaks too
                finally:
                    upstream.close()

            def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in HOP_BY_HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        return Handler
