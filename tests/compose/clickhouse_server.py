"""A ClickHouse server process for tests, and raw HTTP to it."""

import http.client
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from compose.embedded.process import dying_with_parent

PASSWORD = "s3cret"
READY_SEC = 60.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class ServerProcess:
    process: "subprocess.Popen[str]"
    port: int

    def client(self, writer: bool = False) -> Client:
        if writer:
            return clickhouse_connect.get_client(
                host="127.0.0.1", port=self.port, username="tidemill", password=PASSWORD
            )
        return clickhouse_connect.get_client(host="127.0.0.1", port=self.port)

    def http(
        self,
        body: bytes | str | None = None,
        /,
        *,
        method: str = "POST",
        path: str = "/",
        headers: dict[str, str] | None = None,
        writer: bool = False,
        params: dict[str, str] | None = None,
    ) -> Answer:
        keys = dict(params or {})
        if writer:
            keys |= {"user": "tidemill", "password": PASSWORD}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, f"{path}?{urlencode(keys)}", body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def write(self, sql: str, **params: str) -> bytes:
        answer = self.http(sql, writer=True, params=params)
        assert answer.status == 200, answer.body
        return answer.body

    def resident_bytes(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")


def command(data: Path, password_file: Path, port: int = 0, *more: str) -> list[str]:
    module = [sys.executable, "-m", "compose.embedded.clickhouse"]
    return [
        *module,
        "--data",
        str(data),
        "--port",
        str(port),
        "--writer-password-file",
        str(password_file),
        *more,
    ]


def start(folder: Path, *more: str) -> ServerProcess:
    """Start a server on ``folder/data`` and a free port; returns when it answers queries."""
    password_file = folder / "password"
    password_file.write_text(PASSWORD + "\n")
    process = subprocess.Popen(
        command(folder / "data", password_file, 0, *more),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TZ": "UTC"},
        preexec_fn=dying_with_parent(),
    )
    assert process.stdout is not None
    line = process.stdout.readline()  # ends with the process, if that fails
    if not line.startswith("listening on "):
        process.wait(READY_SEC)
        raise AssertionError(f"the server did not start: {line!r}, exit {process.returncode}")
    return ServerProcess(process, int(line.rsplit(":", 1)[1]))


def stop(server: ServerProcess) -> int:
    server.process.terminate()
    status = server.process.wait(READY_SEC)
    assert server.process.stdout is not None
    server.process.stdout.close()
    return status
