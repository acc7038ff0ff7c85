"""ClickHouse's HTTP interface: the routes, the response, and how many queries run at once.

A query runs in a thread and writes its result, already formatted and compressed by the engine, into a
pipe; what is read from the pipe goes to the client, so a large result is never held in memory and a slow
client slows its query. The head of the result waits for the end of the query or for ``HEAD_BYTES``,
whichever comes first: an error before that is a proper HTTP error, one after it breaks the transfer.
"""

import asyncio
import fcntl
import json
import os
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from aiohttp import web

from compose.embedded.clickhouse.access import Users
from compose.embedded.clickhouse.bodies import open_spool
from compose.embedded.clickhouse.engine import Engine, Summary, quote
from compose.embedded.clickhouse.errors import ClickHouseError, readonly
from compose.embedded.clickhouse.requests import Call, authenticate, query_id_of, read_call
from compose.embedded.clickhouse.sessions import Sessions
from compose.embedded.clickhouse.statements import find_output

HEAD_BYTES = 1 << 20
_PIPE_BYTES = 1 << 18
_CONTENT_TYPES = {
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
    "TSV": "text/tab-separated-values; charset=UTF-8",
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "CSVWithNames": "text/csv; charset=UTF-8; header=present",
    "JSON": "application/json; charset=UTF-8",
    "JSONCompact": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8",
    "Native": "application/octet-stream",
    "RowBinary": "application/octet-stream",
    "Arrow": "application/octet-stream",
    "ArrowStream": "application/octet-stream",
    "Parquet": "application/octet-stream",
}

Outcome = asyncio.Future[tuple[Summary, bytes]]


@dataclass
class Server:
    """The handlers over one engine. At most ``max_running`` queries run and ``max_waiting`` more wait."""

    engine: Engine
    users: Users
    max_running: int = 16
    max_waiting: int = 256
    _live: dict[str, bool] = field(default_factory=dict)  # query id: whether it only reads
    _waiting: int = 0

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.max_running, thread_name_prefix="query")
        self._sessions = Sessions(self.engine)
        self._slots = asyncio.Semaphore(self.max_running)
        self._common = {
            "X-ClickHouse-Server-Display-Name": "tidemill-embedded",
            "X-ClickHouse-Timezone": self.engine.timezone,
        }

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/ping", self._ok)
        app.router.add_get("/replicas_status", self._ok)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_route("*", "/", self._root)
        return app

    def kill_reads(self) -> None:
        """Stop every running query that only reads."""
        for query_id, killable in list(self._live.items()):
            if killable:
                self.engine.kill(query_id)

    async def close(self) -> None:
        """Let what still runs finish, then close every connection and the engine."""
        await asyncio.to_thread(self._threads.shutdown, wait=True)
        self._sessions.close()
        self.engine.close()

    async def _ok(self, request: web.Request) -> web.Response:
        return web.Response(text="Ok.\n", headers=self._common)

    async def _metrics(self, request: web.Request) -> web.Response:
        text = await asyncio.get_running_loop().run_in_executor(self._threads, self.engine.metrics)
        return web.Response(body=text, content_type="text/plain", charset="utf-8")

    async def _root(self, request: web.Request) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD", "POST"):
            return web.Response(status=405, text="use GET or POST\n", headers={"Allow": "GET, HEAD, POST"})
        query_id = query_id_of(request)
        headers = {**self._common, "X-ClickHouse-Query-Id": query_id}
        has_query = "query" in request.query or request.body_exists
        if not has_query:
            return web.Response(text="Ok.\n", headers=headers)
        try:
            user = authenticate(request, self.users)
            with ExitStack() as files:
                call = await read_call(request, user, query_id, self.engine, files)
                return await self._answer(request, call, files, headers)
        except ClickHouseError as error:
            return self._error(error, headers)

    def _error(self, error: ClickHouseError, headers: dict[str, str]) -> web.Response:
        if error.code == 516:
            headers = {**headers, "WWW-Authenticate": 'Basic realm="ClickHouse server HTTP API"'}
        return web.Response(
            status=error.http_status,
            text=self._text(error),
            headers={**headers, "X-ClickHouse-Exception-Code": str(error.code)},
        )

    def _text(self, error: ClickHouseError) -> str:
        return f"{error} (version {self.engine.version} (official build))\n"

    async def _answer(
        self, request: web.Request, call: Call, files: ExitStack, headers: dict[str, str]
    ) -> web.StreamResponse:
        output_format = find_output(call.query.sql).format if call.query.insert is None else None
        output_format = output_format or call.query.default_format
        headers["X-ClickHouse-Format"] = output_format
        headers["Content-Type"] = _CONTENT_TYPES.get(output_format, "text/plain; charset=UTF-8")
        headers["X-ClickHouse-Exception-Tag"] = tag = secrets.token_hex(8)
        encoding = {} if call.compression == "none" else {"Content-Encoding": call.compression}
        async with self._slot(), self._running(call, files) as (chunks, done):
            if call.wait_end_of_query:
                return await self._whole(request, call, chunks, done, headers, encoding)
            head = bytearray()
            async for chunk in chunks:
                head += chunk
                if len(head) >= HEAD_BYTES:
                    break
            else:
                summary, inline = await asyncio.shield(done)
                headers["X-ClickHouse-Summary"] = _summary(summary)
                return web.Response(
                    body=inline or bytes(head), headers={**headers, **(encoding if head else {})}
                )
            response = web.StreamResponse(headers={**headers, **encoding})
            await response.prepare(request)
            await response.write(bytes(head))
            async for chunk in chunks:
                await response.write(chunk)
            try:
                await asyncio.shield(done)
            except ClickHouseError as error:
                if not encoding:
                    await response.write(_late_error(self._text(error), tag))
                # The transfer must not look complete.
                if request.transport is not None:
                    request.transport.close()
                return response
            await response.write_eof()
            return response

    async def _whole(
        self,
        request: web.Request,
        call: Call,
        chunks: AsyncIterator[bytes],
        done: Outcome,
        headers: dict[str, str],
        encoding: dict[str, str],
    ) -> web.StreamResponse:
        """wait_end_of_query=1: the result waits on disk, so that every error is a proper one."""
        with open_spool(self.engine.spool_dir) as file:
            async for chunk in chunks:
                file.write(chunk)
            summary, inline = await asyncio.shield(done)
            headers["X-ClickHouse-Summary"] = _summary(summary)
            size = file.tell()
            if size <= HEAD_BYTES:
                file.seek(0)
                return web.Response(
                    body=inline or file.read(), headers={**headers, **(encoding if size else {})}
                )
            response = web.StreamResponse(headers={**headers, **encoding})
            response.content_length = size
            await response.prepare(request)
            file.seek(0)
            while chunk := file.read(HEAD_BYTES):
                await response.write(chunk)
            await response.write_eof()
            return response

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._slots.locked() and self._waiting >= self.max_waiting:
            raise ClickHouseError(
                202,
                "TOO_MANY_SIMULTANEOUS_QUERIES",
                f"Too many simultaneous queries. Maximum: {self.max_running}, waiting: {self.max_waiting}",
            )
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    @asynccontextmanager
    async def _running(
        self, call: Call, files: ExitStack
    ) -> AsyncIterator[tuple[AsyncIterator[bytes], Outcome]]:
        """Start the call's query; yields its result in chunks, and its outcome, which is never to be cancelled. Leaving early kills it.

        ``files`` go over to the query. It names them by their descriptors, and a writing one outlives its client: closed any earlier,
        their numbers would be those of other files, and it would insert another client's rows.
        """
        query_id = call.query.query_id
        if query_id in self._live:
            raise ClickHouseError(
                216,
                "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
                f"Query with id = {query_id} is already running.",
            )
        killable = call.query.insert is None and self.engine.reads(call.query.sql)
        if call.readonly and not killable:
            raise readonly(call.user.name)
        query = replace(call.query, sql=self._with_engine_ids(call.query.sql))
        connection, release = self._sessions.lease(call.user, call.session)
        self._live[query_id] = killable
        read_end, write_end = os.pipe()
        files.callback(os.close, write_end)
        result = os.fdopen(read_end, "rb", buffering=0)
        # Beyond the user's share of pipe memory the kernel refuses; a smaller pipe works too.
        with suppress(PermissionError):
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

        def forget() -> None:
            del self._live[query_id]
            release()

        def finished(outcome: Outcome) -> None:
            outcome.exception()  # seen, where the caller left early
            forget()

        theirs = files.pop_all()

        def work() -> tuple[Summary, bytes]:
            with theirs:
                return connection.run(query, f"/proc/self/fd/{write_end}", call.compression)

        try:
            done = asyncio.wrap_future(self._threads.submit(work))
        except RuntimeError:
            theirs.close()
            result.close()
            forget()
            raise ClickHouseError(236, "ABORTED", "The server is shutting down.") from None
        done.add_done_callback(finished)
        reader = asyncio.StreamReader(limit=_PIPE_BYTES)
        try:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), result
            )
            try:
                yield _chunks(reader), done
            finally:
                transport.close()  # a query that still writes sees a closed pipe
        finally:
            if not done.done():
                await asyncio.shield(self._settle(query_id, killable, done))

    async def _settle(self, query_id: str, killable: bool, done: Outcome) -> None:
        """The client is gone: stop its query, unless that writes (the server does the same)."""
        while not done.done():
            if killable:
                # Again and again: the first may come before the engine knows the query.
                await asyncio.to_thread(self.engine.kill, query_id)
            await asyncio.wait([done], timeout=0.2)

    def _with_engine_ids(self, sql: str) -> str:
        """KILL QUERY names the ids HTTP clients know; the engine has its own."""
        if sql.lstrip()[:4].upper() != "KILL":
            return sql
        for query_id in self._live:
            if quote(query_id) in sql and (engine_id := self.engine.engine_query_id(query_id)):
                sql = sql.replace(quote(query_id), quote(engine_id))
        return sql


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while chunk := await reader.read(_PIPE_BYTES):
        yield chunk


def _summary(summary: Summary) -> str:
    return json.dumps({name: str(getattr(summary, name)) for name in Summary.__slots__})


def _late_error(text: str, tag: str) -> bytes:
    """An error inside a body that has begun, as servers since 25.11 mark it."""
    message = text.encode()
    return b"__exception__\r\n%b\r\n%b\r\n%d %b\r\n__exception__\r\n" % (
        tag.encode(),
        message,
        len(message),
        tag.encode(),
    )
