"""The clauses an HTTP server touches are found past strings, comments and names that look like them."""

import pytest

from compose.embedded.clickhouse.errors import ClickHouseError
from compose.embedded.clickhouse.statements import find_insert, find_output


@pytest.mark.parametrize(
    ("sql", "format", "data"),
    [
        ("INSERT INTO t FORMAT CSV\n1,2", "CSV", "1,2"),
        ("insert into t format CSV 1,2", "CSV", "1,2"),
        ("INSERT INTO t (a, b) VALUES (1, 2)", "Values", " (1, 2)"),
        ("-- c\nINSERT /* FORMAT x */ INTO TABLE db.values (format) FORMAT TSV\r\n1", "TSV", "1"),
        ("INSERT INTO format (a) FORMAT Native\n\n", "Native", "\n"),
        ("INSERT INTO FUNCTION file('FORMAT', 'CSV') FORMAT TSV\n", "TSV", ""),
        ("INSERT INTO `a FORMAT b` FORMAT Arrow\n", "Arrow", ""),
    ],
)
def test_an_inserts_data_begin_behind_its_format(sql: str, format: str, data: str) -> None:
    insert = find_insert(sql.encode())
    assert insert is not None
    assert (insert.format, sql[insert.data_start :]) == (format, data)


def test_an_inserts_settings_move_behind_infile() -> None:
    insert = find_insert(b"INSERT INTO t (a) SETTINGS x = 'FORMAT', y = 2 FORMAT CSV\n1")
    assert insert is not None
    assert insert.from_infile("/f") == (
        "INSERT INTO t (a) FROM INFILE '/f' COMPRESSION 'none' SETTINGS x = 'FORMAT', y = 2 FORMAT CSV"
    )


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 FORMAT CSV",
        "INSERT INTO t SELECT 1 FORMAT CSV",
        "INSERT INTO t FROM INFILE 'x' FORMAT CSV",
        "",
        "INSERT",
    ],
)
def test_a_statement_without_inline_data_is_left_alone(sql: str) -> None:
    assert find_insert(sql.encode()) is None


@pytest.mark.parametrize(
    ("sql", "head", "format", "tail"),
    [
        ("SELECT 1", "SELECT 1", None, ""),
        ("SELECT 1; -- FORMAT CSV", "SELECT 1", None, ""),
        ("SELECT 1 FORMAT JSON;", "SELECT 1 ", "JSON", " "),
        (
            "SELECT 'FORMAT x' AS format format TSV settings a = 1",
            "SELECT 'FORMAT x' AS format ",
            "TSV",
            "  settings a = 1",
        ),
        ("SELECT * FROM format(CSV, '1')", "SELECT * FROM format(CSV, '1')", None, ""),
        ("SELECT (SELECT 1 FORMAT) # x", "SELECT (SELECT 1 FORMAT)", None, ""),
    ],
)
def test_a_result_goes_out_before_the_format_clause(
    sql: str, head: str, format: str | None, tail: str
) -> None:
    assert find_output(sql) == (head, format, tail)


def test_an_error_wrapped_in_itself_is_unwrapped() -> None:
    text = "Code: 164. DB::Exception: Code: 164. DB::Exception: No (really). (READONLY) (version 26.9.2.1). (READONLY)"
    error = ClickHouseError.parse(text)
    assert str(error) == "Code: 164. DB::Exception: No (really). (READONLY)"
