"""clickhouse-connect's ordinary HTTP client against the embedded server."""

import gzip
from collections.abc import Iterator

import lz4.frame
import numpy as np
import pyarrow as pa
import pytest
import zstandard
from clickhouse_connect.driver.exceptions import DatabaseError
from clickhouse_connect.driver.external import ExternalData

from tests.compose.clickhouse_server import ServerProcess, start, stop


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    running = start(tmp_path_factory.mktemp("clickhouse"))
    yield running
    assert stop(running) == 0


def fresh_table(server: ServerProcess, name: str) -> str:
    server.write(
        f"CREATE OR REPLACE TABLE {name} (id Int64, label LowCardinality(String), xs Array(Float32)) "
        "ENGINE = MergeTree ORDER BY id SETTINGS non_replicated_deduplication_window = 1000"
    )
    return name


def batch(rows: int) -> pa.Table:
    return pa.table(
        {
            "id": np.arange(rows),
            "label": pa.array(["a", "b"] * (rows // 2)),
            "xs": pa.array([[1.0, 2.0]] * rows, pa.list_(pa.float32())),
        }
    )


def test_rows_inserted_natively_come_back(server: ServerProcess) -> None:
    table = fresh_table(server, "native")
    rows = [(1, "a", [1.0]), (2, "é", [])]
    server.client(writer=True).insert(table, rows, column_names=["id", "label", "xs"])
    assert server.client().query(f"SELECT * FROM {table} ORDER BY id").result_rows == rows


def test_an_arrow_table_goes_in_and_comes_out(server: ServerProcess) -> None:
    table = fresh_table(server, "arrow")
    summary = server.client(writer=True).insert_arrow(table, batch(1000))
    assert summary.written_rows == 1000
    back = server.client().query_arrow(f"SELECT id, xs FROM {table} ORDER BY id")
    assert back["id"].to_pylist() == list(range(1000))
    assert back["xs"].to_pylist() == [[1.0, 2.0]] * 1000


@pytest.mark.parametrize("compression", [None, "gzip", "lz4", "zstd"])
def test_a_raw_insert_is_read_in_any_compression(server: ServerProcess, compression: str | None) -> None:
    table = fresh_table(server, "raw")
    encode = {None: bytes, "gzip": gzip.compress, "lz4": lz4.frame.compress, "zstd": zstandard.compress}[
        compression
    ]
    body = encode(b"1,a,[]\n2,b,[0.5]\n")
    server.client(writer=True).raw_insert(
        table, ["id", "label", "xs"], body, fmt="CSV", compression=compression
    )
    assert server.client().raw_query(f"SELECT * FROM {table} ORDER BY id") == b"1\ta\t[]\n2\tb\t[0.5]\n"


def test_a_data_frame_comes_back(server: ServerProcess) -> None:
    frame = server.client().query_df("SELECT number AS n, toString(number) AS s FROM numbers(3)")
    assert frame["n"].tolist() == [0, 1, 2]
    assert frame["s"].tolist() == ["0", "1", "2"]


def test_parameters_are_bound_by_the_engine(server: ServerProcess) -> None:
    value = "o'clock\t\\ é"
    result = server.client().query(
        "SELECT {s:String}, {xs:Array(Int32)}", parameters={"s": value, "xs": [1, 2]}
    )
    assert result.result_rows == [(value, [1, 2])]


def test_a_setting_holds_for_its_query_and_set_for_its_session(server: ServerProcess) -> None:
    client = server.client()
    threads = "SELECT getSetting('max_threads')"
    default = client.command(threads)
    assert client.query(threads, settings={"max_threads": 7}).result_rows == [(7,)]
    assert client.command(threads) == default
    client.command("SET max_threads = 3")
    assert client.query(threads, settings={"max_threads": 7}).result_rows == [(7,)]
    assert client.command(threads) == 3
    assert server.client().command(threads) == default


def test_a_temporary_table_lives_in_its_session(server: ServerProcess) -> None:
    client = server.client(writer=True)
    client.command("CREATE TEMPORARY TABLE mine (x Int32)")
    client.command("INSERT INTO mine VALUES (1), (2)")
    assert client.command("SELECT sum(x) FROM mine") == 3
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        server.client(writer=True).command("SELECT sum(x) FROM mine")


def test_a_hundred_thousand_ids_travel_as_external_data(server: ServerProcess) -> None:
    client = server.client()
    ids = "\n".join(map(str, range(100_000))).encode()
    for column, external in {
        "id": ExternalData(file_name="ext.csv", data=ids, fmt="CSV", structure=["id UInt64"]),
        "_1": ExternalData(file_name="ext.csv", data=ids, fmt="CSV", types=["UInt64"]),
    }.items():
        query = f"SELECT count() FROM numbers(50000, 100000) WHERE number IN (SELECT {column} FROM ext)"
        assert client.query(query, external_data=external).result_rows == [(50_000,)]
    external = ExternalData(file_name="ext", data=b"1\n", fmt="TSV", structure="id UInt64")
    assert client.query("SELECT 1 WHERE 1 IN ext", external_data=external).result_rows == [(1,)]


@pytest.mark.parametrize(
    ("sql", "code"),
    [("SELECT * FROM nowhere", 60), ("SELECT * FROM no.where", 81), ("SELECT ++", 62), ("SELECT nope", 47)],
)
@pytest.mark.parametrize("writer", [False, True])
def test_errors_carry_clickhouses_code(server: ServerProcess, sql: str, code: int, writer: bool) -> None:
    with pytest.raises(DatabaseError) as caught:
        server.client(writer=writer).query(sql)
    assert f"code: {code}" in str(caught.value).lower()


def test_one_body_is_one_part_and_its_token_counts_once_through_a_view(
    server: ServerProcess,
) -> None:
    table = fresh_table(server, "source")
    server.write(
        "CREATE OR REPLACE TABLE target (label String, n UInt64) ENGINE = SummingMergeTree ORDER BY label "
        "SETTINGS non_replicated_deduplication_window = 1000"
    )
    server.write(
        f"CREATE MATERIALIZED VIEW IF NOT EXISTS feed TO target AS SELECT label, count() AS n FROM {table} GROUP BY label"
    )
    client = server.client(writer=True)
    settings = {
        "async_insert": 0,
        "max_insert_block_size": 10_000_000,
        "min_insert_block_size_rows": 10_000_000,
        "min_insert_block_size_bytes": 0,
        "deduplicate_blocks_in_dependent_materialized_views": 1,
        "insert_deduplication_token": "topic:0:0-19999",
    }
    data = batch(20_000)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema) as writer:
        for piece in data.to_batches(max_chunksize=700):
            writer.write_batch(piece)
    for _ in range(3):
        client.raw_insert(
            table, data.column_names, sink.getvalue().to_pybytes(), settings=settings, fmt="ArrowStream"
        )
    parts = client.query(
        f"SELECT count(), sum(rows) FROM system.parts WHERE table = '{table}' AND active"
    ).result_rows
    assert parts == [(1, 20_000)]
    assert client.command("SELECT sum(n) FROM target") == 20_000
    client.raw_insert(
        table,
        data.column_names,
        sink.getvalue().to_pybytes(),
        fmt="ArrowStream",
        settings={**settings, "insert_deduplication_token": "topic:0:20000-39999"},
    )
    assert client.command(f"SELECT count() FROM {table}") == 40_000
    assert client.command("SELECT sum(n) FROM target") == 40_000


def test_an_inserts_own_settings_and_the_urls_both_hold(server: ServerProcess) -> None:
    table = fresh_table(server, "both")
    sql = f"INSERT INTO {table} (id, label) SETTINGS insert_deduplication_token = 'once' FORMAT TSV\n"
    for body in ("1;a\n", "2;b\n"):
        server.write(sql.replace("TSV", "CSV") + body, format_csv_delimiter=";")
    assert server.client().query(f"SELECT id FROM {table}").result_rows == [(1,)]
