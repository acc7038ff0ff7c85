"""What a service tells who asks it."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from runtime.service import Health, serve_health
from runtime.settings import Settings


def test_who_asks_and_does_not_wait_leaves_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    health, gone, handled = Health("sink"), threading.Event(), threading.Event()
    snapshot = health.snapshot

    def late() -> dict[str, object]:
        assert gone.wait(10)
        return snapshot()

    monkeypatch.setattr(health, "snapshot", late)
    server = serve_health(Settings(), health)
    shutdown_request = server.shutdown_request

    def ended(request: socket.socket) -> None:
        shutdown_request(request)
        handled.set()

    monkeypatch.setattr(server, "shutdown_request", ended)
    asking = socket.create_connection(("127.0.0.1", server.server_address[1]))
    asking.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    asking.close()
    gone.set()
    assert handled.wait(10)
    server.shutdown()
    server.server_close()
    assert capfd.readouterr().err == ""
