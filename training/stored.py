"""Labels and features of answered predictions as ClickHouse has them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from numpy.typing import NDArray

from features.columns import Columns
from schemas.spec import ModelSpec
from training.joined import Joined, joined
from training.rows import no_columns
from warehouse.client import mapped

_CHUNK_ROWS: Final = 50_000
_INLINE_IDS: Final = 2000
"""So many ids fit into a query; a larger range is read whole and matched here."""

_LABELS_SQL: Final = """
SELECT prediction_id, revision, toUnixTimestamp64Milli(requested_at) AS requested_ms, toUnixTimestamp64Milli(joined_at) AS joined_ms,
    toString(truth) AS truth, truth_value, toString(label) AS label, loss, feedback_partition
FROM internal.outcomes
WHERE model = {model:String} AND role = 'live'
    AND joined_at <= fromUnixTimestamp64Milli({through_ms:Int64}, 'UTC')
    AND joined_at >= fromUnixTimestamp64Milli(
        transform(feedback_partition, {partitions:Array(Int32)}, {from_ms:Array(Int64)}, toInt64(0)), 'UTC')
ORDER BY requested_at DESC, prediction_id DESC, revision DESC
LIMIT {rows:UInt64}
"""
_FEATURES_SQL: Final = """
SELECT prediction_id, numbers, texts
FROM internal.observations
WHERE model = {model:String} AND role = 'live' AND status = 'answered'
    AND requested_at >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')
    AND requested_at <= fromUnixTimestamp64Milli({to_ms:Int64}, 'UTC')
"""


class Found(NamedTuple):
    """Labels, and through which feedback partition each came."""

    joined: Joined
    partitions: NDArray[np.int32]


def labels(
    client: Client, spec: ModelSpec, from_ms: Mapping[int, int], through_ms: int, rows: int
) -> Found | None:
    """The `rows` most recently requested predictions with a label joined up to `through_ms`, and, of a feedback partition in `from_ms`,
    not before that; None if there are none.

    Raises:
        Outage: ClickHouse does not answer.
        Refused: ClickHouse will not answer this.
    """
    partitions = sorted(from_ms)
    table = _table(client, _LABELS_SQL, {
        "model": spec.name, "through_ms": through_ms, "partitions": partitions,
        "from_ms": [max(0, from_ms[partition]) for partition in partitions], "rows": rows,
    })  # fmt: skip
    if not table.num_rows:
        return None
    table = table.take(pa.array(np.arange(table.num_rows)[::-1]))
    return Found(joined(spec, table, _ids(table)), table["feedback_partition"].to_numpy())


def features(
    client: Client, spec: ModelSpec, ids: list[bytes], requested_ms: NDArray[np.int64]
) -> tuple[Columns, list[int]]:
    """The features of `ids` and the positions in `ids` for which there are any, in ascending order.

    Raises:
        Outage: ClickHouse does not answer.
        Refused: ClickHouse will not answer this.
    """
    order = np.argsort(requested_ms, kind="stable")
    parts: list[Columns] = []
    positions: list[int] = []
    for start in range(0, len(order), _CHUNK_ROWS):
        chosen = order[start : start + _CHUNK_ROWS]
        times = requested_ms[chosen]
        sql, parameters = _FEATURES_SQL, {
            "model": spec.name, "from_ms": int(times.min()), "to_ms": int(times.max()),
        }  # fmt: skip
        if len(chosen) <= _INLINE_IDS:
            # Ids are digits and hyphens only; as a bound parameter the list would exceed the limit on a URL.
            sql += f" AND prediction_id IN ({', '.join(_quoted(ids[row]) for row in chosen)})"
        table = _table(client, sql, parameters)
        places = {key: place for place, key in enumerate(_ids(table))}
        have = [int(row) for row in chosen if ids[row] in places]
        if have:
            columns = Columns.from_lists(_list(table["numbers"]), _list(table["texts"]), spec)
            parts.append(columns.take([places[ids[row]] for row in have]))
            positions += have
    if not parts:
        return no_columns(spec), []
    ascending = np.argsort(positions)
    return Columns.concat(parts).take(ascending), [positions[place] for place in ascending]


def _table(client: Client, sql: str, parameters: dict[str, object]) -> pa.Table:
    try:
        return client.query_arrow(sql, parameters=parameters).combine_chunks()
    except ClickHouseError as error:
        raise mapped(error) from error


def _ids(table: pa.Table) -> list[bytes]:
    """A UUID column (Arrow's extension type) as bytes in network order."""
    return [value for chunk in table["prediction_id"].chunks for value in chunk.storage.to_pylist()]


def _quoted(value: bytes) -> str:
    return f"'{uuid.UUID(bytes=value)}'"


def _list(column: pa.ChunkedArray) -> pa.ListArray:
    return pa.concat_arrays(column.chunks)
