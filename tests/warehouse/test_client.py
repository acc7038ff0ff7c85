"""What ClickHouse's errors mean: the same statement later, or never."""

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

from compose.embedded.stack import Stack
from schemas.errors import Outage
from warehouse.client import REFUSALS, Refused, connect, mapped


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (75, "CANNOT_WRITE_TO_FILE_DESCRIPTOR"), (243, "NOT_ENOUGH_SPACE"), (252, "TOO_MANY_PARTS"), (241, "MEMORY_LIMIT_EXCEEDED"),
        (319, "UNKNOWN_STATUS_OF_INSERT"), (1001, "STD_EXCEPTION"), (1002, "UNKNOWN_EXCEPTION"), (173, "CANNOT_ALLOCATE_MEMORY"),
        (439, "CANNOT_SCHEDULE_TASK"), (735, "QUERY_WAS_CANCELLED_BY_CLIENT"), (99999, "WHAT_NOBODY_HAS_HEARD_OF"),
    ],
)  # fmt: skip
def test_what_passes_by_itself_is_an_outage(code: int, name: str) -> None:
    found = mapped(DatabaseError(f"Code: {code}. DB::Exception: no. ({name})"))
    assert isinstance(found, Outage)
    assert name in str(found)


@pytest.mark.parametrize(
    ("code", "name"), [(27, "CANNOT_PARSE_INPUT_ASSERTION_FAILED"), (60, "UNKNOWN_TABLE")]
)
def test_what_never_passes_is_a_refusal_with_its_code(code: int, name: str) -> None:
    found = mapped(DatabaseError(f"Code: {code}. DB::Exception: no. ({name})"))
    assert isinstance(found, Refused)
    assert found.code == code


def test_a_connection_that_breaks_is_an_outage() -> None:
    assert isinstance(mapped(OperationalError("connection reset by peer")), Outage)


def test_clickhouse_calls_the_codes_by_the_same_names(infrastructure: Stack) -> None:
    found = infrastructure.settings
    client = connect(found.clickhouse_url, found.clickhouse_user, found.clickhouse_password)
    codes = list(REFUSALS)
    rows = client.query(
        "SELECT arrayMap(code -> errorCodeToName(code), {codes:Array(Int32)})", parameters={"codes": codes}
    ).result_rows
    assert dict(zip(codes, rows[0][0], strict=True)) == dict(REFUSALS)
    client.close()
