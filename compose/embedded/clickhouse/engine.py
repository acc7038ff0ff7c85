"""The engine: one per process and data directory, a light connection (0.2 ms) per request or HTTP session.

chdb keeps settings, the current database, temporary tables and roles per connection, and runs
connections in parallel without the GIL. What it does not have is a query id of the caller's choice, so
each query carries the HTTP one as the first word of its ``log_comment``; ``kill`` finds it by that.
"""

import fcntl
import importlib
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compose.embedded.clickhouse.access import ENGINE_USERS, User, check_reader, engine_config, explain_denial
from compose.embedded.clickhouse.errors import ClickHouseError, readonly
from compose.embedded.clickhouse.statements import Insert, find_output

BACKUPS_DIR = (
    "backups"  # the only folder that BACKUP and RESTORE may name; links in it lead to where backups are kept
)
_SETTING_NAME = re.compile(r"[A-Za-z_][\w.]*")


class DataDirectoryInUseError(RuntimeError):
    """Another process has this data directory open."""


@dataclass(frozen=True, slots=True)
class ExternalTable:
    """A table that exists for one query: ``path`` holds its rows in ``format``; ``structure`` is ``a Int32, …``."""

    name: str
    structure: str
    format: str
    path: str


@dataclass(frozen=True, slots=True)
class Query:
    """One statement as HTTP brought it. ``data_path`` holds an INSERT's rows, named through /proc/self/fd."""

    sql: str
    query_id: str
    default_format: str
    settings: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    database: str | None = None
    insert: Insert | None = None
    data_path: str | None = None
    external_tables: tuple[ExternalTable, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    read_rows: int
    read_bytes: int
    written_rows: int
    written_bytes: int
    result_rows: int
    elapsed_ns: int


class Connection:
    """A connection of one user. Not for two threads at a time."""

    def __init__(self, raw: Any, user: User, shared: bool) -> None:
        self._raw = raw
        self._shared = shared
        self._user = user
        self._has_state = False  # a SET, USE or CREATE TEMPORARY TABLE was run

    def close(self) -> None:
        self._raw.close()

    def execute(
        self, sql: str, output_format: str = "TSV", parameters: Mapping[str, str] | None = None
    ) -> Any:
        try:
            return self._raw.query(sql, output_format, params=dict(parameters or {}))
        except RuntimeError as error:
            raise ClickHouseError.parse(str(error)) from None

    def run(self, query: Query, output_path: str, compression: str) -> tuple[Summary, bytes]:
        """Run ``query``; a result is written to ``output_path``, a pipe, compressed.

        A statement whose kind may not be redirected (DDL, KILL) returns its small result, uncompressed.
        """
        started_ns = time.perf_counter_ns()
        restore = self._enter(query)
        try:
            result = self._execute(query, output_path, compression)
        finally:
            if self._shared:
                self._leave(query, restore)
        summary = Summary(
            read_rows=result.storage_rows_read(),
            read_bytes=result.storage_bytes_read(),
            written_rows=result.rows_written(),
            written_bytes=result.bytes_written(),
            result_rows=0 if query.insert else result.rows_read(),
            elapsed_ns=time.perf_counter_ns() - started_ns,
        )
        return summary, bytes(result.bytes())

    def _execute(self, query: Query, output_path: str, compression: str) -> Any:
        if query.insert is not None and query.data_path is not None:
            if not self._user.may_write:
                raise readonly(self._user.name)
            return self.execute(query.insert.from_infile(query.data_path), parameters=query.parameters)
        report = self._raw.classify_query(query.sql)
        kind = report["query_class"].name
        if report["statement_count"] > 1:
            # The server's rule too; and it keeps EXPLAIN AST, below, from running a second statement.
            raise ClickHouseError(62, "SYNTAX_ERROR", "Syntax error (Multi-statements are not allowed).")
        if not self._user.may_write:
            check_reader(self._raw, self._user.name, query.sql, kind)
        if kind != "READ_ONLY":
            self._has_state |= kind == "CONTROL"
            return self.execute(query.sql, query.default_format, query.parameters)
        output = find_output(query.sql)
        sql = output.into_outfile(output_path, output.format or query.default_format, compression)
        try:
            return self.execute(sql, parameters=query.parameters)
        except ClickHouseError as error:
            raise (error if self._user.may_write else explain_denial(self._raw, query.sql, error)) from None

    def _enter(self, query: Query) -> str:
        """Set what holds for this query only; returns the SET that undoes it."""
        comment = query.settings.get("log_comment", "")
        settings = {**query.settings, "log_comment": f"{query.query_id} {comment}".rstrip()}
        for name in settings:
            if not _SETTING_NAME.fullmatch(name):
                raise ClickHouseError(115, "UNKNOWN_SETTING", f"Unknown setting '{name}'.")
        undo = self._undo(query.settings) if self._shared else []
        database = (
            bytes(self.execute("SELECT currentDatabase()").bytes())
            if query.database and self._has_state
            else None
        )
        self.execute("SET " + ", ".join(f"{name} = {quote(value)}" for name, value in settings.items()))
        if query.database:
            self.execute(f"USE {quote_name(query.database)}")
            back = database.decode().rstrip("\n") if database is not None else "default"
            undo = [*undo, f"USE {quote_name(back)}"]
        for table in query.external_tables:
            self.execute(
                f"CREATE TEMPORARY TABLE {quote_name(table.name)} ({table.structure}) ENGINE = Memory"
            )
            self.execute(
                f"INSERT INTO {quote_name(table.name)} FROM INFILE '{table.path}' COMPRESSION 'none' FORMAT {table.format}"
            )
        return ";".join(undo)

    def _undo(self, settings: Mapping[str, str]) -> list[str]:
        if not settings:
            return []
        before = dict.fromkeys(settings, "DEFAULT")
        if self._has_state:
            names = ", ".join(map(quote, settings))
            rows = self.execute(
                f"SELECT name, value FROM system.settings WHERE changed AND name IN ({names})", "TSV"
            )
            for line in bytes(rows.bytes()).decode().splitlines():
                name, value = line.split("\t", 1)
                before[name] = f"'{value}'"  # TSV escapes as a string literal does
        return ["SET " + ", ".join(f"{name} = {value}" for name, value in before.items())]

    def _leave(self, query: Query, restore: str) -> None:
        for table in query.external_tables:
            self.execute(f"DROP TEMPORARY TABLE IF EXISTS {quote_name(table.name)}")
        if restore:
            self.execute(restore)


class Engine:
    """The engine over ``data_dir``, until ``close``. Raises DataDirectoryInUseError if another process has it."""

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self.spool_dir = data_dir / "spool"  # uploads: unnamed files, which a crash leaves no trace of
        self.spool_dir.mkdir(exist_ok=True)
        self._lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DataDirectoryInUseError(
                f"{data_dir}: another process has this data directory open"
            ) from None
        users_path, config_path = data_dir / "users.xml", data_dir / "config.xml"
        users_path.write_text(ENGINE_USERS)
        backups_dir = data_dir / BACKUPS_DIR
        backups_dir.mkdir(exist_ok=True)
        config_path.write_text(engine_config(str(users_path.resolve()), str(backups_dir.resolve())))
        # Imported late: the import starts an engine of its own for a moment, which costs most of a second.
        _chdb = importlib.import_module("chdb._chdb")
        _chdb.set_signal_handlers_enabled(0)
        self._connect = _chdb.connect
        self._path = str((data_dir / "store").resolve())
        self._root = self._connect(f"{self._path}?config-file={config_path.resolve()}")
        self._root_lock = threading.Lock()
        self.version, self.timezone = self._ask("SELECT version(), timezone()").decode().split()

    def _ask(self, sql: str, **parameters: str) -> bytes:
        with self._root_lock:
            return bytes(self._root.query(sql, "TSV", params=parameters).bytes())

    def reads(self, sql: str) -> bool:
        """Whether ``sql`` changes nothing, by the engine's own parser; what does not parse runs nothing."""
        with self._root_lock:
            return self._root.classify_query(sql)["query_class"].name in ("READ_ONLY", "UNKNOWN")

    def connect(self, user: User, shared: bool = False) -> Connection:
        """A fresh connection; if ``shared`` by several queries, each leaves it as it found it."""
        raw = self._connect(self._path + ("" if user.may_write else "?readonly=2"))
        connection = Connection(raw, user, shared)
        if not user.may_write:
            connection.execute("SET ROLE reader")
        return connection

    def engine_query_id(self, query_id: str) -> str | None:
        """The engine's own id of a running query."""
        sql = "SELECT query_id FROM system.processes WHERE splitByChar(' ', Settings['log_comment'])[1] = {id:String}"
        return self._ask(sql, id=query_id).decode().strip() or None

    def kill(self, query_id: str) -> None:
        """Ask a running query to stop; the query itself then fails with QUERY_WAS_CANCELLED."""
        if (engine_id := self.engine_query_id(query_id)) is not None:
            self._ask(f"KILL QUERY WHERE query_id = {quote(engine_id)} ASYNC")

    def metrics(self) -> bytes:
        """The engine's own counters and gauges as Prometheus text."""
        return self._ask(_METRICS)

    def close(self) -> None:
        """Let merges and caches settle and release the directory. No connection may be in use."""
        self._root.close()
        os.close(self._lock)


_METRICS = """
SELECT name, toFloat64(value) AS value, help, type FROM
(
    SELECT 'ClickHouseMetrics_' || metric AS name, value, description AS help, 'gauge' AS type FROM system.metrics
    UNION ALL SELECT 'ClickHouseProfileEvents_' || event, value, description, 'counter' FROM system.events
)
FORMAT Prometheus
"""


def quote(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quote_name(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
