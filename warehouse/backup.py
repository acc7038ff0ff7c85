"""Backup and restore of ClickHouse by its own BACKUP and RESTORE: incremental by file, checksummed, the same on any server.

A backup is taken of a snapshot: clones of the tables, which are hard links to their parts. So the copy and the checksums are of the same
rows, however long they take and whatever is inserted or merged meanwhile. Two tables of a running server cannot be cloned at one moment: so
observations come last, for outcomes follow from them, and the snapshot has no outcome without its observation; tables that a
materialized view fills are left out and computed again from the restored rows.

`where` is a path below the server's `backups.allowed_path`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from schemas.backup import Partition, Table
from schemas.errors import TidemillError, UserError
from warehouse.client import mapped
from warehouse.migrate import migrations

DATABASES: Final = ("internal", "default", "models")
SNAPSHOT: Final = "backup_snapshot"
LAST: Final = "internal.observations"
"""Cloned last: outcomes follow from it."""
_TARGET: Final = re.compile(r"\bTO\s+`?(\w+)`?\.`?(\w+)`?")
_NO_SPACE: Final = frozenset({243, 481})
_ENOSPC: Final = "No space left on device"


class Filled(NamedTuple):
    """A table that a materialized view fills."""

    table: str
    select: str


class Layout(NamedTuple):
    """What there is to copy."""

    tables: dict[str, bool]
    """Table with rows of its own → whether it is read through FINAL."""
    filled: list[Filled]
    views: list[str]


class Differs(TidemillError):
    """What was restored is not what was copied; the message names tables and partitions."""


def layout(client: Client) -> Layout:
    """Tables and views of Tidemill's databases.

    Raises:
        UserError: a table of an engine that cannot be cloned.
    """
    rows = _rows(
        client,
        "SELECT database || '.' || name, engine, create_table_query, as_select FROM system.tables "
        "WHERE database IN {databases:Array(String)} ORDER BY database || '.' || name",
        {"databases": list(DATABASES)},
    )
    filled, views, tables = [], [], {}
    for name, engine, created, select in rows:
        if engine == "MaterializedView":
            target = _TARGET.search(created)
            if target is None:
                raise UserError(
                    f"{name}: a materialized view without a table of its own (TO) cannot be backed up"
                )
            filled.append(Filled(f"{target[1]}.{target[2]}", select))
        if engine.endswith("View"):
            views.append(name)
        else:
            tables[name] = engine
    for each in filled:
        tables.pop(each.table, None)
    for name, engine in tables.items():
        if engine not in ("MergeTree", "ReplacingMergeTree"):
            raise UserError(
                f"{name}: a table of engine {engine} cannot be backed up, expected MergeTree or ReplacingMergeTree"
            )
    order = sorted(tables, key=lambda name: (name == LAST, name))
    return Layout({name: tables[name] == "ReplacingMergeTree" for name in order}, filled, views)


@contextlib.contextmanager
def snapshot(client: Client) -> Iterator[Layout]:
    """The tables as they are now, kept while the block runs. One at a time: what an earlier one left behind is removed."""
    found = layout(client)
    _run(client, f"DROP DATABASE IF EXISTS {SNAPSHOT} SYNC")
    _run(client, f"CREATE DATABASE {SNAPSHOT}")
    try:
        for table in found.tables:
            _run(client, f"CREATE TABLE {_clone(table)} CLONE AS {_quoted(table)}")
            _run(client, f"SYSTEM STOP MERGES {_clone(table)}")
        yield found
    finally:
        _run(client, f"DROP DATABASE IF EXISTS {SNAPSHOT} SYNC")


def back_up(client: Client, taken: Layout, where: str, base: str = "") -> None:
    """Write the snapshot to `where`; with `base`, only the files that the backup there has not.

    Raises:
        UserError: the disk is full, or the server may not write there.
    """
    elements = [f"TABLE {_clone(table)} AS {_quoted(table)}" for table in taken.tables]
    # The filled tables' definitions, without rows: a view's target must be there.
    for target in dict.fromkeys(filled.table for filled in taken.filled):
        _run(client, f"CREATE TABLE {_clone(target)} AS {_quoted(target)}")
        elements.append(f"TABLE {_clone(target)} AS {_quoted(target)}")
    elements += [f"TABLE {_quoted(view)}" for view in taken.views]
    settings = f" SETTINGS base_backup = File({_text(base)})" if base else ""
    _run(client, f"BACKUP {', '.join(elements)} TO File({_text(where)}){settings}")


def contents(client: Client, tables: Mapping[str, bool], *, of_snapshot: bool = False) -> dict[str, Table]:
    """Rows and checksum of every partition of `tables` (name → whether through FINAL). Independent of order, parts and merges."""
    return {
        table: Table(final=final, partitions=_partitions(client, _clone(table) if of_snapshot else _quoted(table), final))
        for table, final in tables.items()
    }  # fmt: skip


def restore(client: Client, where: str, tables: Mapping[str, Table]) -> int:
    """Replace Tidemill's databases by the backup at `where`; return the rows. The tables' definitions are the backup's: migrate then.

    Raises:
        Differs: what is there now is not what was copied.
    """
    for database in ("models", "internal"):
        _run(client, f"DROP DATABASE IF EXISTS {database} SYNC")
    for (name,) in _rows(client, "SELECT name FROM system.tables WHERE database = 'default'"):
        _run(client, f"DROP TABLE default.`{name}` SYNC")
    for statement in migrations()[0].statements:  # the databases
        _run(client, statement)
    _run(client, f"RESTORE ALL FROM File({_text(where)})")
    found = contents(client, {name: table.final for name, table in tables.items()})
    if found != dict(tables):
        raise Differs(f"the restored rows are not the backup's: {'; '.join(_differences(tables, found))}")
    filled = layout(client).filled
    for target, select in filled:
        if any(other.table in select for other in filled):
            continue  # a view over a filled table: filling that one fills it
        names = ", ".join(f"`{row[0]}`" for row in _rows(client, f"DESCRIBE TABLE ({select})"))
        _run(client, f"INSERT INTO {_quoted(target)} ({names}) {select}")
    return sum(part.rows for table in found.values() for part in table.partitions.values())


def migration(client: Client) -> int:
    """Number of the last migration that was applied."""
    return int(_rows(client, "SELECT max(number) FROM default.schema_migrations")[0][0])


def _partitions(client: Client, table: str, final: bool) -> dict[str, Partition]:
    source = table + (" FINAL" if final else "")
    ids = [row[0] for row in _rows(client, f"SELECT DISTINCT _partition_id FROM {table} ORDER BY 1")]
    found = {}
    for id_ in ids:
        rows, checksum = _rows(
            client,
            f"SELECT count(), sum(cityHash64(*)) FROM {source} WHERE _partition_id = {{id:String}}",
            {"id": id_},
        )[0]
        found[str(id_)] = Partition(rows=int(rows), checksum=int(checksum))
    return found


def _differences(wanted: Mapping[str, Table], found: Mapping[str, Table]) -> Iterator[str]:
    nothing = Partition(rows=0, checksum=0)
    for name, table in wanted.items():
        for id_ in sorted(table.partitions.keys() | found[name].partitions.keys()):
            before = table.partitions.get(id_, nothing)
            after = found[name].partitions.get(id_, nothing)
            if before != after:
                yield f"{name} partition {id_}: {after.rows} rows, expected {before.rows}" + (
                    " (other content)" if before.rows == after.rows else ""
                )


def _clone(table: str) -> str:
    """The table's clone: its own name may occur in two databases."""
    return f"{SNAPSHOT}.`{table}`"


def _quoted(table: str) -> str:
    database, _, name = table.partition(".")
    return f"`{database}`.`{name}`"


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _run(client: Client, statement: str) -> None:
    try:
        client.command(statement)
    except ClickHouseError as error:
        raise _explained(error) from error


def _rows(client: Client, query: str, parameters: dict[str, Any] | None = None) -> list[Any]:
    try:
        return list(client.query(query, parameters=parameters).result_rows)
    except ClickHouseError as error:
        raise _explained(error) from error


def _explained(error: ClickHouseError) -> TidemillError:
    if getattr(error, "code", None) in _NO_SPACE or _ENOSPC in str(error):
        return UserError(f"no space left for the backup: {str(error).strip().splitlines()[0]}")
    if "backups.allowed_path" in str(error):
        return UserError(
            f"ClickHouse may not write backups there: set backups.allowed_path: {str(error).strip().splitlines()[0]}"
        )
    return mapped(error)
