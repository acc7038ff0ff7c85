"""A link breaks in each of its ways, and mends."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from benchmarks.faults.proxy import DELAY_SEC, Links, Mode
from compose.embedded.ports import HOST

TIMEOUT_SEC = 5.0
INSERT = b"POST /?query=INSERT+INTO+t HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
SELECT = b"POST /?query=SELECT+1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab"


@pytest.fixture
def echo() -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers with what it was sent; its port, and what it has received."""
    server = socket.create_server((HOST, 0))
    received: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(65536):
                received.append(data)
                connection.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1], received
    server.close()


@pytest.fixture
def links(echo: tuple[int, list[bytes]]) -> Iterator[Links]:
    with Links(("a-kafka", "a-clickhouse")) as found:
        found.connect("a-kafka", echo[0])
        found.connect("a-clickhouse", echo[0])
        yield found


def dial(links: Links, name: str = "a-kafka") -> socket.socket:
    return socket.create_connection((HOST, links.port(name)), TIMEOUT_SEC)


def ask(connection: socket.socket, what: bytes) -> bytes:
    """The answer; b"" if the connection breaks."""
    try:
        connection.sendall(what)
        return connection.recv(65536)
    except ConnectionError:
        return b""


def test_an_open_link_passes_everything(links: Links) -> None:
    with dial(links) as connection:
        assert ask(connection, b"abc") == b"abc"
    assert links.met("a-kafka") == 0


@pytest.mark.parametrize("mode", [Mode.CUT, Mode.DELAY, Mode.DEAF])
def test_a_broken_link_knows_what_it_met(links: Links, mode: Mode) -> None:
    links.set("a-kafka", mode)
    assert links.met("a-kafka") == 0
    with dial(links) as connection:
        ask(connection, b"abc")
    assert links.met("a-kafka") > 0


def test_a_cut_link_resets_connections_and_takes_no_new_ones_until_it_is_mended(links: Links) -> None:
    with dial(links) as connection:
        assert ask(connection, b"abc") == b"abc"
        links.set("a-kafka", Mode.CUT)
        assert ask(connection, b"abc") == b""
    with dial(links) as connection:
        assert ask(connection, b"abc") == b""
    links.set("a-kafka", Mode.OPEN)
    with dial(links) as connection:
        assert ask(connection, b"abc") == b"abc"


def test_a_stalled_link_passes_everything_once_it_is_mended(links: Links) -> None:
    with dial(links) as connection:
        links.set("a-kafka", Mode.STALL)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            ask(connection, b"abc")
        connection.settimeout(TIMEOUT_SEC)
        links.set("a-kafka", Mode.OPEN)
        assert connection.recv(100) == b"abc"


def test_a_slow_link_takes_its_time_in_both_directions(links: Links) -> None:
    with dial(links) as connection:
        links.set("a-kafka", Mode.DELAY)
        began = time.monotonic()
        assert ask(connection, b"abc") == b"abc"
        assert time.monotonic() - began >= 2 * DELAY_SEC * 0.9


def test_a_deaf_link_lets_the_request_through_and_loses_the_answer(
    links: Links, echo: tuple[int, list[bytes]]
) -> None:
    with dial(links) as connection:
        links.set("a-kafka", Mode.DEAF)
        assert ask(connection, b"abc") == b""
    assert echo[1] == [b"abc"]


@pytest.mark.parametrize(("mode", "code"), [(Mode.DISK_FULL, b"243"), (Mode.TOO_MANY_PARTS, b"252")])
def test_a_server_in_trouble_refuses_inserts_and_answers_questions(
    links: Links, echo: tuple[int, list[bytes]], mode: Mode, code: bytes
) -> None:
    links.set("a-clickhouse", mode)
    with dial(links, "a-clickhouse") as connection:
        assert b"X-ClickHouse-Exception-Code: " + code in ask(connection, INSERT)
        assert echo[1] == []
        assert ask(connection, SELECT) == SELECT
        links.set("a-clickhouse", Mode.OPEN)
        assert ask(connection, INSERT) == INSERT
