"""One range, one block: the INSERT, and how to see whether a range is in ClickHouse.

**Looking first.** A deduplication token is remembered for the table's last 10,000 blocks only, so a successor does not rely on it alone.
What it asks depends on the table:

* A ReplacingMergeTree needs no question. A row inserted twice has the same key and replaces itself for every reader (FINAL); and a
  count could mislead, since a row that a newer revision replaced is gone after a merge. It is inserted again without a token, see below.
* `observations` rows carry the coordinates of their *request*, not of the record that brought them, so offsets cannot identify a range. Its rows
  can: (prediction id, attempt, arm) is unique. They are sent along as an external table. The tables that materialized views
  fill are counted too: ClickHouse commits a table's part before its views', and a crash between them leaves observations that no label can find.
  A repeat with the same token then skips the table and fills the view (tried). There a row counts once however often it stands: a
  view's block was once taken twice, under two ids, after the engine was killed in the middle of an insert; the copies say the same, and
  who looks up takes one.
* `dead_letters` rows carry their own record's coordinates: a count of the offsets is exact.

**A token may lie.** ClickHouse notes a block's token before it commits the part. Killed in between, it takes every repeat for known, though
nothing is there (seen: two tokens for one part's name in `deduplication_logs`). So a range that has been inserted with its token and is still
missing from a table as a whole, while no query inserts it, is inserted there under another token; into a table that a view fills, directly.

Any other difference, more rows than planned or a part of them, halts the partition, for a person to look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.external import ExternalData

from schemas.errors import Outage
from streams.sink import tables
from streams.sink.ranges import Range
from streams.sink.tables import Table
from warehouse.client import Refused, mapped

_AGAIN: Final = "/again"


class Count(NamedTuple):
    """Rows of a range in one table."""

    table: str
    found: int
    expected: int


def insert(client: Client, table: Table, range_: Range, *, token: str = "", deduplicate: bool = True) -> None:
    """Insert the range as one block, under its own token if no other is given.

    Raises:
        Outage: it may or may not be in; the same range with the same token may be inserted again.
        Refused: ClickHouse will not take it.
    """
    body = table.encode([record.payload for record in range_.records if record.rows])
    settings = {
        "async_insert": 0,
        "insert_deduplicate": int(deduplicate),
        "insert_deduplication_token": token or range_.token,
        "deduplicate_blocks_in_dependent_materialized_views": 1,
        # One block, however ClickHouse reads the body: a second one would have a token of its own.
        "max_insert_block_size": range_.rows,
        "min_insert_block_size_rows": range_.rows,
        "min_insert_block_size_bytes": 0,
        "input_format_parallel_parsing": 0,
        # Fields are only ever added: a newer writer's are passed over, an older writer's take their default.
        "input_format_skip_unknown_fields": 1,
        "input_format_null_as_default": 1,
        # Nested objects and arrays of events arrive as JSON text.
        "input_format_json_read_objects_as_strings": 1,
        "input_format_json_read_arrays_as_strings": 1,
    }
    _raw_insert(client, table.name, body, settings, table.format)


def insert_if_missing(client: Client, table: Table, range_: Range) -> bool:
    """Insert a range that may be there already, whole or in part; return whether it had to be inserted.

    Raises:
        Outage: as `insert`.
        Refused: as `insert`, or the range is there neither whole nor not at all and nothing mends it.
    """
    count = _COUNTS.get(table.name)
    if count is None:
        insert(client, table, range_, deduplicate=False)
        return True
    if not _wrong(count(client, range_)):
        return False
    insert(client, table, range_)
    # In this order: what was under way and ends between the two is counted.
    under_way = _is_inserting(client, range_)
    wrong = _wrong(count(client, range_))
    if wrong and under_way:
        raise Outage(f"ClickHouse: {range_.token} is still being inserted")
    if wrong and not any(each.found for each in wrong):
        _insert_lost(client, table, range_, {each.table for each in wrong})
        wrong = _wrong(count(client, range_))
    if wrong:
        what = ", ".join(f"{table} has {found} of {expected} rows" for table, found, expected in wrong)
        raise Refused(
            0, f"{range_.topic}:{range_.partition} {range_.first}-{range_.end - 1}: after its insert {what}"
        )
    return True


def _insert_lost(client: Client, table: Table, range_: Range, lost: set[str]) -> None:
    """Insert the range into the tables `lost`, which know its token and have none of its rows."""
    if table.name in lost:
        # The views take the rows, too: there a row may stand twice.
        insert(client, table, range_, token=f"{range_.token}{_AGAIN}")
        return
    rows = _rows(range_)
    for name in sorted(lost):
        chosen, columns = _VIEWS[name]
        body = _stream(rows.filter(chosen(rows)).select(columns))
        _raw_insert(client, name, body, {"insert_deduplicate": 0}, "ArrowStream")


def _is_inserting(client: Client, range_: Range) -> bool:
    """Whether a query is under way that inserts the range: one whose answer was lost goes on."""
    sql = "SELECT count() FROM system.processes WHERE Settings['insert_deduplication_token'] IN {tokens:Array(String)}"
    (found,) = _query(client, sql, {"tokens": [range_.token, f"{range_.token}{_AGAIN}"]})
    return found > 0


def _raw_insert(client: Client, name: str, body: bytes, settings: dict[str, Any], fmt: str) -> None:
    try:
        client.raw_insert(name, insert_block=body, settings=settings, fmt=fmt)
    except ClickHouseError as error:
        raise mapped(error) from error


def _wrong(counts: list[Count]) -> list[Count]:
    return [count for count in counts if count.found != count.expected]


def count_observations(client: Client, range_: Range) -> list[Count]:
    """The range's rows in the table and in those that its views fill."""
    columns = ["prediction_id", "attempt", "arm", "model", "requested_at", "status", "role", "request_id"]
    rows = _rows(range_).select(columns)
    times = pc.min_max(rows["requested_at"].cast(pa.int64())).as_py()
    found = _query(
        client,
        """
        WITH fromUnixTimestamp64Milli({oldest:Int64}, 'UTC') AS oldest, fromUnixTimestamp64Milli({newest:Int64}, 'UTC') AS newest
        SELECT
            (SELECT count() FROM internal.observations
             WHERE model IN {models:Array(String)} AND requested_at BETWEEN oldest AND newest
               AND (prediction_id, attempt, arm) IN (SELECT prediction_id, attempt, arm FROM range)),
            (SELECT uniqExact(prediction_id, attempt, arm) FROM internal.prediction_lookup
             WHERE UUIDToNum(prediction_id) IN (SELECT UUIDToNum(prediction_id) FROM range)
               AND (prediction_id, attempt, arm) IN (SELECT prediction_id, attempt, arm FROM range WHERE status = 'answered')),
            (SELECT uniqExact(prediction_id, attempt) FROM internal.request_lookup
             WHERE model IN {models:Array(String)}
               AND request_id IN (SELECT request_id FROM range WHERE role = 'live' AND status = 'answered' AND request_id != '')
               AND (prediction_id, attempt) IN (
                   SELECT prediction_id, attempt FROM range WHERE role = 'live' AND status = 'answered' AND request_id != ''))
        """,
        {"oldest": times["min"], "newest": times["max"], "models": pc.unique(rows["model"]).to_pylist()},
        ExternalData(
            file_name="range",
            data=_stream(rows.select(["prediction_id", "attempt", "arm", "status", "role", "request_id"])),
            fmt="ArrowStream",
            structure="prediction_id UUID, attempt UInt8, arm String, status String, role String, request_id String",
        ),
    )
    return [
        Count("internal.observations", found[0], rows.num_rows),
        Count("internal.prediction_lookup", found[1], pc.sum(_answered(rows)).as_py() or 0),
        Count("internal.request_lookup", found[2], pc.sum(_named(rows)).as_py() or 0),
    ]


def _rows(range_: Range) -> pa.Table:
    """Its observations."""
    batches = [
        _with_attempt(pa.Table.from_batches([record.payload])) for record in range_.records if record.rows
    ]
    return pa.concat_tables(batches)


def _answered(rows: pa.Table) -> pa.ChunkedArray:
    return pc.equal(rows["status"], "answered")


def _named(rows: pa.Table) -> pa.ChunkedArray:
    asked = pc.and_(pc.equal(rows["role"], "live"), pc.not_equal(rows["request_id"], ""))
    return pc.and_(_answered(rows), asked)


_VIEWS: Final[dict[str, tuple[Callable[[pa.Table], pa.ChunkedArray], list[str]]]] = {
    "internal.prediction_lookup": (
        _answered,
        ["prediction_id", "request_id", "model", "entity", "role", "arm", "version", "label", "scores", "segments",
         "requested_at", "observed_at", "attempt"],
    ),
    "internal.request_lookup": (_named, ["model", "request_id", "requested_at", "prediction_id", "attempt"]),
}  # fmt: skip
"""Which observations the materialized views put into these tables, and what of them (`schemas/migrations`)."""


def _with_attempt(rows: pa.Table) -> pa.Table:
    """An earlier release knew no attempts: its rows are 0, as in ClickHouse."""
    if "attempt" in rows.column_names:
        return rows
    return rows.append_column("attempt", pa.repeat(pa.scalar(0, pa.uint8()), len(rows)))


def count_dead_letters(client: Client, range_: Range) -> list[Count]:
    """The range's rows by their own offsets."""
    found = _query(
        client,
        """
        SELECT count() FROM internal.dead_letters
        WHERE topic_id = {topic_id:UUID} AND partition = {partition:Int32} AND offset >= {first:Int64} AND offset < {end:Int64}
        """,
        {
            "topic_id": str(range_.topic_id), "partition": range_.partition, "first": range_.first, "end": range_.end,
        },
    )  # fmt: skip
    return [Count("internal.dead_letters", found[0], range_.rows)]


_COUNTS: Final[dict[str, Callable[[Client, Range], list[Count]]]] = {
    tables.OBSERVATIONS.name: count_observations,
    tables.DEAD_LETTERS.name: count_dead_letters,
}


def _stream(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _query(
    client: Client, sql: str, parameters: dict[str, Any], external: ExternalData | None = None
) -> tuple[int, ...]:
    try:
        row = client.query(sql, parameters=parameters, external_data=external).result_rows[0]
    except ClickHouseError as error:
        problem = mapped(error)
        # A question that cannot be asked says nothing about the data: never a reason to halt, unlike a refused insert.
        raise (problem if isinstance(problem, Outage) else Outage(f"ClickHouse: {problem}")) from error
    return tuple(int(value) for value in row)
