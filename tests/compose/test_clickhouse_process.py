"""The server as a process: its folder, its port, its end, and what a kill leaves behind."""

import itertools
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

from compose.embedded.clickhouse.__main__ import EXIT_DATA_IN_USE, EXIT_PORT_TAKEN
from tests.compose.clickhouse_server import ServerProcess, command, start, stop
from tests.waiting import until

_TABLE = "CREATE TABLE IF NOT EXISTS t (batch Int64, row Int64) ENGINE = MergeTree ORDER BY batch"
_BATCH_ROWS = 500


def test_a_second_process_on_a_data_directory_says_so(tmp_path: Path) -> None:
    server = start(tmp_path)
    second = subprocess.run(
        command(tmp_path / "data", tmp_path / "password"), capture_output=True, text=True, timeout=60
    )
    assert second.returncode == EXIT_DATA_IN_USE
    assert second.stderr.splitlines() == [
        f"{tmp_path / 'data'}: another process has this data directory open"
    ]
    assert server.http("SELECT 1").body == b"1\n"
    assert stop(server) == 0


def test_a_taken_port_says_so(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        late = subprocess.run(
            command(tmp_path / "data", tmp_path / "password", port),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert late.returncode == EXIT_PORT_TAKEN
    assert len(late.stderr.splitlines()) == 1
    assert f"127.0.0.1:{port}" in late.stderr


def test_a_missing_password_file_says_so(tmp_path: Path) -> None:
    missing = tmp_path / "password"
    result = subprocess.run(command(tmp_path / "data", missing), capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith(
        f"--writer-password-file {missing}: No such file or directory"
    )


def test_sigterm_finishes_a_running_insert_and_stops_a_running_query(tmp_path: Path) -> None:
    server = start(tmp_path)
    server.write(_TABLE)
    insert = "INSERT INTO t SELECT number, sleepEachRow(0.02) FROM numbers(50)"  # a second
    with ThreadPoolExecutor(2) as pool:
        inserting = pool.submit(server.http, insert, writer=True, params={"max_block_size": "10"})
        reading = pool.submit(
            server.http, "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))"
        )
        until(lambda: server.http("SELECT count() FROM system.processes").body == b"3\n", "both run")
        assert stop(server) == 0
        assert inserting.result().status == 200
        assert reading.result().headers["X-ClickHouse-Exception-Code"] == "394"
    again = start(tmp_path)
    assert again.http("SELECT count() FROM t").body == b"50\n"
    assert stop(again) == 0


def insert_until_killed(server: ServerProcess, batches: Iterator[int], acknowledged: list[int]) -> None:
    while True:
        batch = next(batches)
        body = "".join(f"{batch},{row}\n" for row in range(_BATCH_ROWS))
        try:
            answer = server.http("INSERT INTO t FORMAT CSV\n" + body, writer=True)
        except (OSError, HTTPException):
            return
        assert answer.status == 200, answer.body
        acknowledged.append(batch)


def run_and_kill(folder: Path, batches: Iterator[int]) -> list[int]:
    """Insert from three threads, SIGKILL the server amid it; returns the acknowledged batches."""
    server = start(folder)
    server.write(_TABLE)
    acknowledged: list[int] = []
    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(insert_until_killed, server, batches, acknowledged) for _ in range(3)]
        until(lambda: len(acknowledged) >= 20, "some inserts are acknowledged")
        server.process.kill()
        for writer in writers:
            writer.result()
    server.process.wait()
    assert server.process.stdout is not None
    server.process.stdout.close()
    return acknowledged


def test_every_acknowledged_insert_survives_sigkill_whole(tmp_path: Path) -> None:
    batches = itertools.count()  # next() on it is atomic
    acknowledged = [batch for _ in range(4) for batch in run_and_kill(tmp_path, batches)]
    server = start(tmp_path)
    rows = (
        server.http("SELECT batch, uniqExact(row), count() FROM t GROUP BY batch").body.decode().splitlines()
    )
    assert stop(server) == 0
    stored = {int(batch): (distinct, count) for batch, distinct, count in (row.split("\t") for row in rows)}
    assert set(acknowledged) <= set(stored)
    assert set(stored.values()) == {(str(_BATCH_ROWS), str(_BATCH_ROWS))}
