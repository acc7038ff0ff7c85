"""Request bodies: decoded as they arrive and spooled to an unnamed file in the data directory.

A body is whole before its INSERT starts, so a client that dies half-way through inserts nothing.
"""

import os
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, Any

import lz4.frame
import zstandard

from compose.embedded.clickhouse.access import User
from compose.embedded.clickhouse.errors import ClickHouseError, readonly
from compose.embedded.clickhouse.statements import Insert, find_insert

HEAD_BYTES = 256 * 1024  # ClickHouse's max_query_size: an INSERT's text before its data is no longer
MAX_QUERY_BYTES = 64 * 1024 * 1024

_DECODERS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    "deflate": lambda: zlib.decompressobj(),
    "lz4": lz4.frame.LZ4FrameDecompressor,
    "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(),
}
# In order of preference: what the engine compresses a result with, by its name in Accept-Encoding.
RESPONSE_ENCODINGS = ("lz4", "zstd", "gzip", "deflate", "br")


async def decoded(chunks: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """``chunks`` without their Content-Encoding."""
    if encoding in ("", "identity"):
        async for chunk in chunks:
            yield chunk
        return
    if encoding not in _DECODERS:
        raise ClickHouseError(
            779,
            "UNSUPPORTED_MEDIA_TYPE",
            f"Content-Encoding '{encoding}' is not one of identity, {', '.join(_DECODERS)}",
        )
    decoder = _DECODERS[encoding]()
    async for chunk in chunks:
        try:
            plain = decoder.decompress(chunk)
        except (zlib.error, RuntimeError, EOFError, zstandard.ZstdError) as error:
            raise _not_decodable(encoding, str(error)) from None
        if plain:
            yield plain
    if not decoder.eof:
        raise _not_decodable(encoding, "it ends too early")


def _not_decodable(encoding: str, why: str) -> ClickHouseError:
    return ClickHouseError(354, "CANNOT_DECOMPRESS", f"the request's body is not valid {encoding}: {why}")


def open_spool(directory: Path) -> IO[bytes]:
    """An unnamed file: it goes with its descriptor, whatever happens to the process."""
    return os.fdopen(
        os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "w+b", buffering=1 << 20
    )


def path_of(file: IO[bytes]) -> str:
    file.flush()
    return f"/proc/self/fd/{file.fileno()}"


async def read_statement(
    url_query: str, body: AsyncIterator[bytes], spool_dir: Path, user: User
) -> tuple[str, Insert | None, IO[bytes] | None]:
    """The statement in URL and body as ClickHouse joins them, and an INSERT's data as a spooled file."""
    head = bytearray((url_query + "\n").encode("utf-8", "surrogateescape") if url_query else b"")
    insert = find_insert(bytes(head)) if url_query else None
    if insert is None:
        looked = False
        async for chunk in body:
            head += chunk
            if len(head) >= HEAD_BYTES and not looked:
                looked, insert = True, find_insert(bytes(head[:HEAD_BYTES]))
                if insert is not None:
                    break
            if len(head) > MAX_QUERY_BYTES:
                raise ClickHouseError(
                    229, "QUERY_IS_TOO_LARGE", f"the query is longer than {MAX_QUERY_BYTES} bytes"
                )
        if not looked:
            insert = find_insert(bytes(head))
    if insert is None:
        return head.decode("utf-8", "surrogateescape"), None, None
    if not user.may_write:
        raise readonly(user.name)  # before its data fill the disk
    file = open_spool(spool_dir)
    try:
        file.write(head[insert.data_start :])
        async for chunk in body:
            file.write(chunk)
    except BaseException:
        file.close()
        raise
    return head[: insert.data_start].decode("utf-8", "surrogateescape"), insert, file
