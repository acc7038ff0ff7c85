"""Links that can be broken: TCP proxies on loopback, one a pair of parts, in an event loop of their own thread.

A link passes bytes on as they come. To ClickHouse it reads requests whole, so that an INSERT can be answered as a server in trouble would.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from compose.embedded.ports import HOST

CHUNK_BYTES: Final = 1 << 18
HEAD_BYTES: Final = 1 << 20


class Mode(Enum):
    """What a link does."""

    OPEN = "passes everything"
    CUT = "connections are reset, new ones too"
    STALL = "connections stand, nothing passes"
    DELAY = "everything passes, late"
    DEAF = "requests pass; where an answer comes, it is lost and the connection breaks"
    DISK_FULL = "INSERTs are answered with NOT_ENOUGH_SPACE"
    TOO_MANY_PARTS = "INSERTs are answered with TOO_MANY_PARTS"


DELAY_SEC: Final = 0.15
REFUSALS: Final = {
    Mode.DISK_FULL: (243, "Cannot reserve 1.00 MiB, not enough space. (NOT_ENOUGH_SPACE)"),
    Mode.TOO_MANY_PARTS: (252, "Too many parts (3000). Merges are processing significantly slower than inserts. (TOO_MANY_PARTS)"),
}  # fmt: skip


@dataclass(eq=False)
class Link:
    """One proxied pair of parts. `mode` and `upstream_port` are set from any thread through `Links`."""

    name: str
    http: bool
    port: int = 0
    upstream_port: int = 0
    mode: Mode = Mode.OPEN
    met: int = 0
    """How much traffic a mode other than OPEN has met: connections and chunks refused, cut, held up or lost."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    connections: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        if self.mode is Mode.CUT:
            self.met += 1
            writer.transport.abort()
            return
        self.connections.add(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection(HOST, self.upstream_port, limit=HEAD_BYTES)
        except OSError:  # what is behind it is away, and so the connection breaks
            self.connections.discard(writer)
            writer.transport.abort()
            return
        self.connections.add(up_writer)
        requests = self._requests(reader, writer, up_writer) if self.http else self._pump(reader, up_writer)
        try:
            async with asyncio.TaskGroup() as group:
                pumps = [
                    group.create_task(requests),
                    group.create_task(self._pump(up_reader, writer, answers=True)),
                ]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()
        except* (OSError, asyncio.IncompleteReadError):
            pass  # either side broke it off: so does the other, below
        finally:
            for each in (writer, up_writer):
                self.connections.discard(each)
                each.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool = False
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if not await self._passes(answers):
                writer.transport.abort()
                return
            writer.write(data)
            await writer.drain()

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up_writer: asyncio.StreamWriter
    ) -> None:
        """HTTP requests one by one: nobody sends the next before the answer to the last."""
        while True:
            request = await read_request(reader)
            if not await self._passes(answers=False):
                writer.transport.abort()
                return
            refusal = REFUSALS.get(self.mode)
            if refusal is not None and b"INSERT" in request[:4096]:
                self.met += 1
                writer.write(_refused(*refusal))
                await writer.drain()
            else:
                up_writer.write(request)
                await up_writer.drain()

    async def _passes(self, answers: bool) -> bool:
        """False if the connection has to break now; waits while the link stalls."""
        self.met += self.mode in (Mode.STALL, Mode.DELAY)
        while self.mode is Mode.STALL:
            await self.changed.wait()
        if self.mode is Mode.DELAY:
            await asyncio.sleep(DELAY_SEC)
        breaks = self.mode is Mode.CUT or (self.mode is Mode.DEAF and answers)
        self.met += breaks
        return not breaks

    def set(self, mode: Mode) -> None:
        """In the loop's thread."""
        self.mode = mode
        self.changed.set()
        self.changed = asyncio.Event()
        if mode is Mode.CUT:
            self.met += len(self.connections)
            for writer in list(self.connections):
                writer.transport.abort()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """One HTTP/1.1 request, head and body as they are on the wire.

    Raises:
        asyncio.IncompleteReadError: the connection ended.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        body = bytearray()
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            body += line + await reader.readexactly(size + 2)
            if size == 0:
                return head + bytes(body)
    return head + await reader.readexactly(int(fields.get(b"content-length", b"0")))


def _refused(code: int, message: str) -> bytes:
    body = f"Code: {code}. DB::Exception: {message}\n".encode()
    return (
        f"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain; charset=UTF-8\r\n"
        f"X-ClickHouse-Exception-Code: {code}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


class Links:
    """All links, by name; used as a context. Every method may be called from any thread."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._links: dict[str, Link] = {}
        self._servers: list[asyncio.Server] = []
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(names), self._loop).result(10)

    async def _open(self, names: tuple[str, ...]) -> None:
        for name in names:
            link = Link(name, http=name.endswith("-clickhouse"))
            server = await asyncio.start_server(link.serve, HOST, 0, limit=HEAD_BYTES)
            link.port = server.sockets[0].getsockname()[1]
            self._links[name] = link
            self._servers.append(server)

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for link in self._links.values():
            link.set(Mode.CUT)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)

    def port(self, name: str) -> int:
        """Where clients connect."""
        return self._links[name].port

    def connect(self, name: str, upstream_port: int) -> None:
        """Say what is behind a link."""
        self._links[name].upstream_port = upstream_port

    def met(self, name: str) -> int:
        """How much traffic a broken link has met so far."""
        return self._links[name].met

    def set(self, name: str, mode: Mode) -> None:
        """Break or mend a link; returns when that is in effect."""

        async def change() -> None:
            self._links[name].set(mode)

        asyncio.run_coroutine_threadsafe(change(), self._loop).result(10)
