"""One way to reach ClickHouse, and the mapping of its errors: an outage is retried, a refusal is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

from schemas.errors import Outage, TidemillError, UserError

CONNECT_TIMEOUT_SEC: Final = 5
QUERY_TIMEOUT_SEC: Final = 60
REFUSALS: Final[Mapping[int, str]] = {
    # the rows: a value, a type, a column
    6: "CANNOT_PARSE_TEXT",
    16: "NO_SUCH_COLUMN_IN_TABLE",
    20: "NUMBER_OF_COLUMNS_DOESNT_MATCH",
    25: "CANNOT_PARSE_ESCAPE_SEQUENCE",
    26: "CANNOT_PARSE_QUOTED_STRING",
    27: "CANNOT_PARSE_INPUT_ASSERTION_FAILED",
    38: "CANNOT_PARSE_DATE",
    41: "CANNOT_PARSE_DATETIME",
    44: "ILLEGAL_COLUMN",
    50: "UNKNOWN_TYPE",
    53: "TYPE_MISMATCH",
    69: "ARGUMENT_OUT_OF_BOUND",
    70: "CANNOT_CONVERT_TYPE",
    72: "CANNOT_PARSE_NUMBER",
    117: "INCORRECT_DATA",
    130: "CANNOT_READ_ARRAY_FROM_TEXT",
    131: "TOO_LARGE_STRING_SIZE",
    190: "SIZES_OF_ARRAYS_DONT_MATCH",
    321: "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE",
    349: "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN",
    376: "CANNOT_PARSE_UUID",
    407: "DECIMAL_OVERFLOW",
    469: "VIOLATED_CONSTRAINT",
    # the statement
    1: "UNSUPPORTED_METHOD",
    36: "BAD_ARGUMENTS",
    42: "NUMBER_OF_ARGUMENTS_DOESNT_MATCH",
    43: "ILLEGAL_TYPE_OF_ARGUMENT",
    46: "UNKNOWN_FUNCTION",
    47: "UNKNOWN_IDENTIFIER",
    48: "NOT_IMPLEMENTED",
    57: "TABLE_ALREADY_EXISTS",
    60: "UNKNOWN_TABLE",
    62: "SYNTAX_ERROR",
    73: "UNKNOWN_FORMAT",
    81: "UNKNOWN_DATABASE",
    115: "UNKNOWN_SETTING",
    184: "ILLEGAL_AGGREGATION",
    215: "NOT_AN_AGGREGATE",
    386: "NO_COMMON_TYPE",
    456: "UNKNOWN_QUERY_PARAMETER",
    457: "BAD_QUERY_PARAMETER",
    # who asks
    192: "UNKNOWN_USER",
    193: "WRONG_PASSWORD",
    194: "REQUIRED_PASSWORD",
    195: "IP_ADDRESS_NOT_ALLOWED",
    291: "DATABASE_ACCESS_DENIED",
    497: "ACCESS_DENIED",
    516: "AUTHENTICATION_FAILED",
}  # fmt: skip
"""Error codes, by ClickHouse's names, that speak of the rows, the statement or the user. All others, those that nobody here has heard of too, speak of the server:
a full disk alone has a dozen (75, 243, 1001, 1002, …), and the same statement may succeed later."""


class Refused(TidemillError):
    """ClickHouse will not take this statement while nothing in it, in the tables or in the rights changes."""

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
    """clickhouse-connect's error as ours: `Refused` if its code is one of `REFUSALS`, else `Outage`."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    code = _code(error)
    return Refused(code, text) if code in REFUSALS else Outage(f"ClickHouse: {text}")


def _code(error: ClickHouseError) -> int:
    """ClickHouse's code, 0 if the error is not its answer."""
    code = getattr(error, "code", None)
    if code is not None:
        return int(code)
    if isinstance(error, OperationalError):
        return 0
    number = str(error).partition("Code:")[2].strip().partition(".")[0]
    return int(number) if number.isdigit() else 0
