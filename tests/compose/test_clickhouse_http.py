"""The HTTP protocol as curl sees it, and what a reader may not do."""

import http.client
import json
import socket
import threading
import zlib
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from tests.compose.clickhouse_server import PASSWORD, ServerProcess, start, stop
from tests.waiting import until

_SLOW = "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    running = start(tmp_path_factory.mktemp("clickhouse"), "--max-running", "4", "--max-waiting", "2")
    running.write("CREATE TABLE events (id Int64, name String) ENGINE = MergeTree ORDER BY id")
    yield running
    assert stop(running) == 0


def running_queries(server: ServerProcess, comment: str) -> int:
    sql = f"SELECT count() FROM system.processes WHERE startsWith(Settings['log_comment'], '{comment}')"
    return int(server.http(sql).body)


def test_ping_and_replicas_status_say_ok(server: ServerProcess) -> None:
    for path in ("/ping", "/replicas_status"):
        answer = server.http(method="GET", path=path)
        assert (answer.status, answer.body) == (200, b"Ok.\n")


def test_a_query_comes_in_the_url_the_body_or_both(server: ServerProcess) -> None:
    assert server.http(method="GET", params={"query": "SELECT 1"}).body == b"1\n"
    assert server.http("SELECT 1 -- done").body == b"1\n"
    assert server.http("2", params={"query": "SELECT 1 +"}).body == b"3\n"


def test_the_answer_names_query_format_timezone_and_summary(server: ServerProcess) -> None:
    answer = server.http(
        "SELECT number FROM numbers(10)", params={"query_id": "mine", "default_format": "JSONEachRow"}
    )
    assert answer.headers["X-ClickHouse-Query-Id"] == "mine"
    assert answer.headers["X-ClickHouse-Format"] == "JSONEachRow"
    assert answer.headers["X-ClickHouse-Timezone"]
    summary = json.loads(answer.headers["X-ClickHouse-Summary"])
    assert (summary["read_rows"], summary["result_rows"], summary["written_rows"]) == ("10", "10", "0")
    assert int(summary["elapsed_ns"]) > 0


@pytest.mark.parametrize(
    "clause", ["FORMAT JSON", "FORMAT JSON SETTINGS max_threads = 1", "SETTINGS max_threads = 1 FORMAT JSON;"]
)
def test_a_format_in_the_query_wins_over_the_default(server: ServerProcess, clause: str) -> None:
    answer = server.http(f"SELECT 'FORMAT CSV' AS format {clause}", params={"default_format": "CSV"})
    assert answer.headers["X-ClickHouse-Format"] == "JSON"
    assert json.loads(answer.body)["data"] == [{"format": "FORMAT CSV"}]


def test_an_inserts_data_follow_its_query_in_any_format(server: ServerProcess) -> None:
    server.write("TRUNCATE TABLE events")
    server.write("INSERT INTO events FORMAT JSONEachRow\n" + '{"id": 1, "name": "a"}\n{"id": 2, "name": "b"}')
    server.write("INSERT INTO events (id, name) VALUES (1 + 2, 'it''s'), (4, 'd')")
    server.write("5,e\n", query="INSERT INTO events FORMAT CSV")
    server.write("INSERT INTO events SELECT 6, 'f'")
    body = server.http("SELECT * FROM events ORDER BY id FORMAT CSV").body
    assert body == b'1,"a"\n2,"b"\n3,"it\'s"\n4,"d"\n5,"e"\n6,"f"\n'


def test_results_are_compressed_as_the_client_accepts(server: ServerProcess) -> None:
    plain = b"".join(b"%d\n" % n for n in range(1000))
    decoders = {
        "lz4": lz4.frame.decompress,
        "gzip": lambda b: zlib.decompress(b, 31),
        "deflate": zlib.decompress,
        "zstd": lambda b: zstandard.ZstdDecompressor().decompressobj().decompress(b),
    }
    for encoding, decode in decoders.items():
        answer = server.http(
            "SELECT number FROM numbers(1000)",
            params={"enable_http_compression": "1"},
            headers={"Accept-Encoding": encoding},
        )
        assert answer.headers["Content-Encoding"] == encoding
        assert decode(answer.body) == plain
    assert "Content-Encoding" not in server.http("SELECT 1", headers={"Accept-Encoding": "gzip"}).headers


def test_a_body_cut_off_in_its_compression_inserts_nothing(server: ServerProcess) -> None:
    server.write("TRUNCATE TABLE events")
    body = zlib.compress(b"1,a\n" * 1000)[:-8]
    query = {"query": "INSERT INTO events FORMAT CSV"}
    answer = server.http(body, writer=True, params=query, headers={"Content-Encoding": "deflate"})
    assert answer.headers["X-ClickHouse-Exception-Code"] == "354"
    assert server.http("SELECT count() FROM events").body == b"0\n"


@pytest.mark.parametrize(
    ("sql", "code", "status", "name"),
    [
        ("SELECT ++", 62, 400, "SYNTAX_ERROR"),
        ("SELECT 1; SELECT 2", 62, 400, "SYNTAX_ERROR"),
        ("SELECT * FROM nowhere", 60, 404, "UNKNOWN_TABLE"),
        ("SELECT * FROM no.where", 81, 404, "UNKNOWN_DATABASE"),
        ("SELECT nope()", 46, 404, "UNKNOWN_FUNCTION"),
        ("SELECT sleep(3) SETTINGS max_execution_time = 0.1", 159, 408, "TIMEOUT_EXCEEDED"),
        ("SELECT throwIf(1)", 395, 500, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
    ],
)
def test_errors_have_clickhouses_code_status_and_text(
    server: ServerProcess, sql: str, code: int, status: int, name: str
) -> None:
    answer = server.http(sql)
    assert (answer.status, answer.headers["X-ClickHouse-Exception-Code"]) == (status, str(code))
    text = answer.body.decode()
    assert text.startswith(f"Code: {code}. DB::Exception: ")
    assert f"({name}) (version " in text


def test_an_unknown_setting_is_an_error(server: ServerProcess) -> None:
    assert (
        server.http("SELECT 1", params={"no_such_setting": "1"}).headers["X-ClickHouse-Exception-Code"]
        == "115"
    )


def test_three_ways_to_log_in_and_a_wrong_password(server: ServerProcess) -> None:
    roles = "SELECT has(currentRoles(), 'writer')"
    basic = b64encode(f"tidemill:{PASSWORD}".encode()).decode()
    assert server.http(roles, headers={"Authorization": f"Basic {basic}"}).body == b"1\n"
    assert (
        server.http(roles, headers={"X-ClickHouse-User": "tidemill", "X-ClickHouse-Key": PASSWORD}).body
        == b"1\n"
    )
    assert server.http(roles, params={"user": "tidemill", "password": PASSWORD}).body == b"1\n"
    assert server.http(roles, params={"user": "analyst"}).body == b"0\n"
    for user in ("tidemill", "nobody"):
        answer = server.http("SELECT 1", params={"user": user, "password": "wrong"})
        assert (answer.status, answer.headers["X-ClickHouse-Exception-Code"]) == (403, "516")


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO events VALUES (1, 'x')",
        "INSERT INTO events SELECT 1, 'x'",
        "INSERT INTO FUNCTION file('x.csv') SELECT 1",
        "INSERT INTO events FROM INFILE '/etc/passwd' FORMAT LineAsString",
        "CREATE TABLE mine (x Int32) ENGINE = Memory",
        "DROP TABLE events",
        "ALTER TABLE events DELETE WHERE 1",
        "TRUNCATE TABLE events",
        "SELECT 1 INTO OUTFILE '/tmp/never'",
        "SET ROLE writer",
        "SET readonly = 0",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT file('/etc/passwd')",
        "SELECT `fi\\x6ce`('/etc/passwd')",
        "SELECT * FROM (SELECT file('/etc/passwd'))",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "DESCRIBE file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
        "SELECT * FROM remote('127.0.0.1', 'system.one')",
        "SELECT * FROM s3('http://bucket.s3.amazonaws.com/x', 'CSV')",
        "SELECT * FROM sqlite('/tmp/x.db', 't')",
        "SELECT * FROM python(sys)",
        "SYSTEM FLUSH LOGS",
        "KILL QUERY WHERE 1",
    ],
)
def test_a_reader_neither_writes_nor_reads_the_servers_files(server: ServerProcess, sql: str) -> None:
    answer = server.http(sql)
    assert answer.headers["X-ClickHouse-Exception-Code"] in ("164", "497"), answer.body
    assert b"root:" not in answer.body


@pytest.mark.parametrize(
    "sql",
    [
        "SHOW TABLES",
        "DESCRIBE events",
        "EXPLAIN SELECT 1",
        "EXISTS events",
        "SHOW CREATE TABLE events",
        "WITH 1 AS x SELECT x",
    ],
)
def test_a_reader_may_look_at_everything(server: ServerProcess, sql: str) -> None:
    answer = server.http(sql)
    assert (answer.status, bool(answer.body)) == (200, True)


@pytest.mark.parametrize("session", [{}, {"session_id": "getter"}])
def test_a_get_and_readonly_do_not_write_even_for_the_writer(
    server: ServerProcess, session: dict[str, str]
) -> None:
    insert = {"query": "INSERT INTO events SELECT 1, 'x'", **session}
    for method, params in (("GET", insert), ("POST", insert | {"readonly": "1"})):
        answer = server.http(method=method, writer=True, params=params)
        assert answer.headers["X-ClickHouse-Exception-Code"] == "164"
    assert server.http(method="POST", writer=True, params=insert).status == 200


def test_a_query_id_runs_once_at_a_time(server: ServerProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.http, "SELECT sleep(2)", params={"query_id": "twin"})
        until(lambda: running_queries(server, "twin") == 1, "the first runs")
        assert (
            server.http("SELECT 1", params={"query_id": "twin"}).headers["X-ClickHouse-Exception-Code"]
            == "216"
        )
        assert first.result().status == 200


def test_a_session_is_known_locked_and_lost(server: ServerProcess) -> None:
    missing = server.http("SELECT 1", params={"session_id": "none", "session_check": "1"})
    assert missing.headers["X-ClickHouse-Exception-Code"] == "372"
    session = {"session_id": "short", "session_timeout": "30"}
    assert server.http("SET max_threads = 5", params=session).status == 200
    assert server.http("SELECT getSetting('max_threads')", params=session).body == b"5\n"
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.http, "SELECT sleep(2), 'lock'", params=session | {"query_id": "lock"})
        until(lambda: running_queries(server, "lock"), "the session's query runs")
        assert server.http("SELECT 1", params=session).headers["X-ClickHouse-Exception-Code"] == "373"
        assert slow.result().status == 200
    last = {"session_id": "short", "session_timeout": "0", "session_check": "1"}
    assert server.http("SELECT 1", params=last).status == 200
    until(lambda: b"SESSION_NOT_FOUND" in server.http("SELECT 1", params=last).body, "the session is gone")


def test_a_large_result_streams_through_flat_memory(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(
        "POST", "/", "SELECT number, toString(number) AS s FROM numbers(30000000) FORMAT ArrowStream"
    )
    response = connection.getresponse()
    total, before = len(response.read(8 << 20)), server.resident_bytes()
    peak = before
    while chunk := response.read(8 << 20):
        total += len(chunk)
        peak = max(peak, server.resident_bytes())
    connection.close()
    assert total > 350_000_000
    assert peak - before < 100_000_000


def test_an_error_after_the_first_bytes_breaks_the_transfer(server: ServerProcess) -> None:
    sql = "SELECT number, throwIf(number = 20000000) FROM numbers(30000000)"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/", sql)
    response = connection.getresponse()
    tag = response.headers["X-ClickHouse-Exception-Tag"].encode()
    with pytest.raises(http.client.IncompleteRead) as caught:
        while response.read(1 << 20):
            pass
    connection.close()
    assert b"__exception__\r\n" + tag in caught.value.partial
    waited = server.http(sql, params={"wait_end_of_query": "1"})
    assert (waited.status, waited.headers["X-ClickHouse-Exception-Code"]) == (500, "395")


def test_a_client_that_leaves_stops_its_query(server: ServerProcess) -> None:
    request = f"POST /?query_id=leaver HTTP/1.1\r\nHost: x\r\nContent-Length: {len(_SLOW)}\r\n\r\n{_SLOW}"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(request.encode())
        until(lambda: running_queries(server, "leaver") == 1, "the query runs")
    until(lambda: running_queries(server, "leaver") == 0, "the query is stopped")


def test_an_insert_whose_client_leaves_at_once_inserts_its_own_rows_or_none(server: ServerProcess) -> None:
    server.write("TRUNCATE TABLE events")
    credentials = b64encode(f"tidemill:{PASSWORD}".encode()).decode()

    def leave(number: int) -> None:
        body = f"INSERT INTO events FORMAT CSV\n{number},left\n"
        head = (
            f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {credentials}\r\nContent-Length: {len(body)}"
        )
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(f"{head}\r\n\r\n{body}".encode())

    def stay(number: int) -> None:
        server.write(f"{number},stayed\n", query="INSERT INTO events FORMAT CSV")

    rounds = 150
    with ThreadPoolExecutor(3) as pool:
        for number in range(rounds):
            left = pool.submit(leave, number)
            stayed = pool.submit(stay, number), pool.submit(stay, number + rounds)
            for each in (left, *stayed):
                each.result()
    until(lambda: running_queries(server, "") == 1, "nothing is left but the question")
    stayed_rows = server.http(
        "SELECT id, count() FROM events WHERE name = 'stayed' GROUP BY id FORMAT CSV"
    ).body
    assert sorted(stayed_rows.split()) == sorted(b"%d,1" % number for number in range(2 * rounds))
    twice = "SELECT count() - uniqExact(id) FROM events WHERE name = 'left'"
    assert server.http(twice).body == b"0\n"


def test_kill_query_knows_the_ids_clients_know(server: ServerProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        victim = pool.submit(server.http, _SLOW, params={"query_id": "victim"})
        until(lambda: running_queries(server, "victim") == 1, "the query runs")
        server.write("KILL QUERY WHERE query_id = 'victim' SYNC")
        assert victim.result().headers["X-ClickHouse-Exception-Code"] == "394"


def test_more_queries_than_may_run_and_wait_are_refused_with_202(server: ServerProcess) -> None:
    codes: list[str | None] = []

    def ask() -> None:
        answer = server.http("SELECT sleep(1)")
        codes.append(answer.headers.get("X-ClickHouse-Exception-Code"))

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes.count("202") == 4  # 4 run, 2 wait
    assert codes.count(None) == 6


def test_metrics_are_prometheus_text(server: ServerProcess) -> None:
    text = server.http(method="GET", path="/metrics").body.decode()
    assert "# TYPE ClickHouseProfileEvents_InsertedRows counter" in text
    assert "# TYPE ClickHouseMetrics_MemoryTracking gauge" in text


def test_what_is_uploaded_leaves_no_file_behind(
    server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server.write("INSERT INTO events FORMAT CSV\n9,z\n")
    spools = list(Path(tmp_path_factory.getbasetemp()).glob("clickhouse*/data/spool"))
    assert spools
    assert [file for spool in spools for file in spool.iterdir()] == []
