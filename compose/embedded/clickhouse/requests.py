"""An HTTP request taken apart the way ClickHouse does: who asks, for what, with which settings.

Source: ClickHouse ``src/Server/HTTPHandler.cpp``; https://clickhouse.com/docs/interfaces/http.
"""

import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

from aiohttp import BasicAuth, BodyPartReader, web

from compose.embedded.clickhouse.access import User, Users
from compose.embedded.clickhouse.bodies import (
    RESPONSE_ENCODINGS,
    decoded,
    open_spool,
    path_of,
    read_statement,
)
from compose.embedded.clickhouse.engine import Engine, ExternalTable, Query
from compose.embedded.clickhouse.errors import ClickHouseError
from compose.embedded.clickhouse.statements import tokens

_CHUNK_BYTES = 1 << 20
_MAX_EXTERNAL_BYTES = 1 << 28  # anybody may send one
# Keys of the URL that are about the transport, or that one embedded engine has no use for; all others are settings.
_TRANSPORT_KEYS = {
    *("query", "query_id", "database", "default_format", "user", "password", "role", "quota_key"),
    *("session_id", "session_timeout", "session_check", "close_session"),
    *(
        "compress",
        "decompress",
        "enable_http_compression",
        "http_zlib_compression_level",
        "client_protocol_version",
    ),
    *(
        "wait_end_of_query",
        "buffer_size",
        "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
    ),
    *("add_http_cors_header", "stacktrace"),
}


@dataclass(frozen=True, slots=True)
class Session:
    id: str
    timeout_sec: int
    must_exist: bool


@dataclass(frozen=True, slots=True)
class Call:
    user: User
    query: Query
    session: Session | None
    compression: str  # the engine's name for it, "none" without
    wait_end_of_query: bool
    readonly: bool


def query_id_of(request: web.Request) -> str:
    return request.query.get("query_id") or request.headers.get("X-ClickHouse-Query-Id") or str(uuid.uuid4())


def authenticate(request: web.Request, users: Users) -> User:
    """The user of X-ClickHouse-User and -Key, of Basic, or of the URL, in the server's order."""
    headers = request.headers
    if "X-ClickHouse-User" in headers or "X-ClickHouse-Key" in headers:
        return users.authenticate(
            headers.get("X-ClickHouse-User", "default"), headers.get("X-ClickHouse-Key", "")
        )
    if "Authorization" in headers:
        try:
            basic = BasicAuth.decode(headers["Authorization"])
        except ValueError as error:
            raise ClickHouseError(516, "AUTHENTICATION_FAILED", f"Invalid authentication: {error}") from None
        return users.authenticate(basic.login or "default", basic.password)
    return users.authenticate(request.query.get("user", "default"), request.query.get("password", ""))


async def read_call(
    request: web.Request, user: User, query_id: str, engine: Engine, files: ExitStack
) -> Call:
    """Read the request to its end. ``files`` takes what was spooled."""
    keys = dict(request.query)
    externals: tuple[ExternalTable, ...] = ()
    if request.content_type == "multipart/form-data":
        externals = await _read_form(request, keys, engine, files)
        sql, insert, data = keys.get("query", ""), None, None
    else:
        body = decoded(
            request.content.iter_chunked(_CHUNK_BYTES), request.headers.get("Content-Encoding", "")
        )
        if _flag(keys, "decompress"):
            raise ClickHouseError(
                48, "NOT_IMPLEMENTED", "decompress=1 (native blocks): send a Content-Encoding instead"
            )
        sql, insert, data = await read_statement(keys.get("query", ""), body, engine.spool_dir, user)
        if data is not None:
            files.enter_context(data)
    if _flag(keys, "compress"):
        raise ClickHouseError(
            48,
            "NOT_IMPLEMENTED",
            "compress=1 (native blocks): set enable_http_compression=1 and Accept-Encoding",
        )
    if not sql.strip():
        raise ClickHouseError(62, "SYNTAX_ERROR", "Syntax error: failed at position 1: Empty query.")
    table_keys = {
        f"{table.name}_{suffix}" for table in externals for suffix in ("format", "structure", "types")
    }
    settings = {
        key: value
        for key, value in keys.items()
        if key not in _TRANSPORT_KEYS and key not in table_keys and not key.startswith("param_")
    }
    # A connection cannot leave readonly mode, and a session's outlives the query: so this one is checked here.
    readonly = request.method != "POST"
    if settings.get("readonly", "0") != "0":
        readonly = bool(settings.pop("readonly"))
    if insert is not None:
        # In parallel, a text body falls into blocks by the machine's cores; one body shall split in one way.
        settings.setdefault("input_format_parallel_parsing", "0")
    query = Query(
        sql=sql,
        query_id=query_id,
        default_format=keys.get("default_format")
        or request.headers.get("X-ClickHouse-Format")
        or "TabSeparated",
        settings=settings,
        parameters={key[len("param_") :]: value for key, value in keys.items() if key.startswith("param_")},
        database=keys.get("database") or request.headers.get("X-ClickHouse-Database") or None,
        insert=insert,
        data_path=path_of(data) if data is not None else None,
        external_tables=externals,
    )
    return Call(
        user=user,
        query=query,
        session=_session(keys),
        compression=_compression(request, keys),
        wait_end_of_query=_flag(keys, "wait_end_of_query"),
        readonly=readonly,
    )


async def _read_form(
    request: web.Request, keys: dict[str, str], engine: Engine, files: ExitStack
) -> tuple[ExternalTable, ...]:
    """Parts with a file name are external tables; the others are keys as in the URL."""
    spooled: dict[str, str] = {}
    async for part in cast(AsyncIterator[BodyPartReader], await request.multipart()):
        if part.name is None:
            raise ClickHouseError(36, "BAD_ARGUMENTS", "a part of the form has no name")
        if part.filename is None:
            keys[part.name] = await part.text()
            continue
        file = files.enter_context(open_spool(engine.spool_dir))
        while chunk := await part.read_chunk(_CHUNK_BYTES):
            file.write(chunk)
            if file.tell() > _MAX_EXTERNAL_BYTES:
                raise ClickHouseError(
                    229,
                    "QUERY_IS_TOO_LARGE",
                    f"External table '{part.name}' is larger than {_MAX_EXTERNAL_BYTES} bytes",
                )
        spooled[part.name] = path_of(file)
    return tuple(
        ExternalTable(name, _structure(name, keys), _word(keys.get(f"{name}_format", "TabSeparated")), path)
        for name, path in spooled.items()
    )


def _structure(name: str, keys: dict[str, str]) -> str:
    if structure := keys.get(f"{name}_structure"):
        return structure
    types = keys.get(f"{name}_types", "").encode()
    if not types:
        raise ClickHouseError(
            36, "BAD_ARGUMENTS", f"External table '{name}' needs {name}_structure or {name}_types"
        )
    commas = [token.start for token in tokens(types) if token.text == b"," and token.depth == 0]
    bounds = zip([0, *(comma + 1 for comma in commas)], [*commas, len(types)], strict=True)
    return ", ".join(
        f"_{number} {types[start:end].decode()}" for number, (start, end) in enumerate(bounds, 1)
    )


def _word(name: str) -> str:
    if not name.isidentifier():
        raise ClickHouseError(73, "UNKNOWN_FORMAT", f"Unknown format {name}")
    return name


def _session(keys: dict[str, str]) -> Session | None:
    if not (session_id := keys.get("session_id")):
        return None
    timeout = keys.get("session_timeout", "60")
    if not timeout.isdigit() or int(timeout) > 3600:
        raise ClickHouseError(
            374, "INVALID_SESSION_TIMEOUT", f"Invalid session timeout: '{timeout}', at most 3600 seconds"
        )
    return Session(session_id, int(timeout), _flag(keys, "session_check"))


def _compression(request: web.Request, keys: dict[str, str]) -> str:
    if not _flag(keys, "enable_http_compression"):
        return "none"
    accepted = {
        name.strip().split(";")[0].strip()
        for name in request.headers.get("Accept-Encoding", "").split(",")
        if "q=0" not in name.replace("q=0.", "")
    }
    return next((encoding for encoding in RESPONSE_ENCODINGS if encoding in accepted), "none")


def _flag(keys: dict[str, str], name: str) -> bool:
    return keys.get(name, "0").lower() not in ("0", "false", "")
