"""One way to reach ClickHouse, and the mapping of its errors: an outage is retried, a refusal is not."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, OperationalError

from schemas.errors import Outage, TidemillError, UserError

CONNECT_TIMEOUT_SEC: Final = 5
QUERY_TIMEOUT_SEC: Final = 60
TRANSIENT_CODES: Final = frozenset({
    75,    # CANNOT_WRITE_TO_FILE_DESCRIPTOR: what a disk that fills up meanwhile looks like
    159,   # TIMEOUT_EXCEEDED
    164,   # READONLY: a table in read-only mode while it recovers
    202,   # TOO_MANY_SIMULTANEOUS_QUERIES
    203,   # NO_FREE_CONNECTION
    209,   # SOCKET_TIMEOUT
    210,   # NETWORK_ERROR
    236,   # ABORTED
    241,   # MEMORY_LIMIT_EXCEEDED
    242,   # TABLE_IS_READ_ONLY
    243,   # NOT_ENOUGH_SPACE
    252,   # TOO_MANY_PARTS
    285,   # TOO_FEW_LIVE_REPLICAS
    319,   # UNKNOWN_STATUS_OF_INSERT
    394,   # QUERY_WAS_CANCELLED
    999,   # KEEPER_EXCEPTION
})  # fmt: skip
"""Error codes after which the same statement may succeed later, though nothing in it changes."""


class Refused(TidemillError):
    """ClickHouse will not take this statement, now or later."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


def connect(
    url: str, user: str = "default", password: str = "", *, timeout_sec: int = QUERY_TIMEOUT_SEC, **settings: Any
) -> Client:  # fmt: skip
    """A client over HTTP, without a session of its own, so that several threads may share it. A query may take `timeout_sec`.

    Raises:
        UserError: the URL is none.
        Outage: nobody answers.
        Refused: the password is wrong.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"ClickHouse URL: found {url!r}, expected http://host:port")
    try:
        return clickhouse_connect.get_client(
            interface=parts.scheme,
            host=parts.hostname,
            port=parts.port or (8443 if parts.scheme == "https" else 8123),
            username=user,
            password=password,
            connect_timeout=CONNECT_TIMEOUT_SEC,
            send_receive_timeout=timeout_sec,
            autogenerate_session_id=False,
            query_retries=0,
            settings=settings,
        )
    except ClickHouseError as error:
        raise mapped(error) from error


def mapped(error: ClickHouseError) -> Outage | Refused:
    """clickhouse-connect's error as ours: `Outage` if the same statement may succeed later, else `Refused`."""
    code = getattr(error, "code", None)
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if code is not None and code not in TRANSIENT_CODES:
        return Refused(int(code), text)
    if (
        code is None
        and isinstance(error, DatabaseError)
        and not isinstance(error, OperationalError)
        and "Code:" in str(error)
    ):
        number = str(error).partition("Code:")[2].strip().partition(".")[0]
        if number.isdigit() and int(number) not in TRANSIENT_CODES:
            return Refused(int(number), text)
    return Outage(f"ClickHouse: {text}")
