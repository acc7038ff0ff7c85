"""Look-ups by id for the labels stage, by name. Ids travel as external data: ten thousand inline exceed `max_query_size`.

All return Arrow tables; prediction ids are their canonical text. Errors come mapped (`warehouse.client.mapped`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.external import ExternalData

from schemas.arrow import F32S, MS, STRINGS, encode_batch
from warehouse.client import mapped

PREDICTION_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("prediction_id_bytes", pa.binary(16)),
        *(pa.field(name, pa.string()) for name in ("model", "entity", "role", "arm", "version", "label")),
        pa.field("scores", F32S),
        pa.field("segments", STRINGS),
        pa.field("requested_at", MS),
        pa.field("observed_at", MS),
    ]
)
"""What `predictions` returns."""

PREDICTIONS: Final = """
SELECT
    toString(prediction_id) AS id,
    UUIDStringToNum(id) AS prediction_id_bytes,
    toString(model) AS model, entity, toString(role) AS role, toString(arm) AS arm, toString(version) AS version,
    toString(label) AS label, scores, arrayMap(segment -> toString(segment), segments) AS segments, requested_at, observed_at
FROM internal.prediction_lookup
WHERE model = {model:String} AND UUIDToNum(prediction_id) IN (SELECT UUIDStringToNum(id) FROM wanted)
ORDER BY prediction_id, arm, attempt DESC
LIMIT 1 BY prediction_id, arm
"""

REQUESTS: Final = """
SELECT
    wanted.place AS place,
    countIf(found.requested_at <= fromUnixTimestamp64Milli(wanted.at_ms, 'UTC')) > 0 AS before,
    toString(if(
        before,
        argMaxIf(found.prediction_id, found.requested_at, found.requested_at <= fromUnixTimestamp64Milli(wanted.at_ms, 'UTC')),
        argMin(found.prediction_id, found.requested_at)
    )) AS id
FROM (
    SELECT request_id, requested_at, prediction_id
    FROM internal.request_lookup
    WHERE model = {model:String} AND request_id IN (SELECT request_id FROM wanted)
) AS found
INNER JOIN wanted ON found.request_id = wanted.request_id
GROUP BY wanted.place
"""

NEWEST_LABELS: Final = """
SELECT
    toString(prediction_id) AS id,
    toUnixTimestamp64Milli(argMax(labeled_at, newest.revision)) AS at_ms,
    argMax(feedback_id, newest.revision) AS feedback_id,
    max(newest.revision) AS revision,
    toString(argMax(truth, newest.revision)) AS truth,
    argMax(truth_value, newest.revision) AS truth_value
FROM internal.outcomes AS newest
WHERE model = {model:String} AND UUIDToNum(prediction_id) IN (SELECT UUIDStringToNum(id) FROM wanted)
GROUP BY prediction_id
"""


def predictions(client: Client, model: str, ids: Sequence[str]) -> pa.Table:
    """All arms of the answered predictions among `ids`, those of a prediction together. Columns: `PREDICTION_SCHEMA`, the id as text
    and as 16 bytes in network order."""
    wanted = pa.record_batch({"id": pa.array(ids, pa.string())})
    return _ask(client, PREDICTIONS, model, wanted, "id String").cast(PREDICTION_SCHEMA)


def requests(client: Client, model: str, request_ids: Sequence[str], at_ms: Sequence[int]) -> pa.Table:
    """Which prediction each (request id, time) means. Columns: place (its position in `request_ids`), before, id.

    `before` is 1 if a prediction was requested at or before that time: `id` is the newest of these. It is 0 if there are only later
    ones: `id` is the oldest. No row: nothing is known of that request id.
    """
    wanted = pa.record_batch(
        {
            "place": pa.array(range(len(request_ids)), pa.uint32()),
            "request_id": pa.array(request_ids, pa.string()),
            "at_ms": pa.array(at_ms, pa.int64()),
        }
    )
    return _ask(client, REQUESTS, model, wanted, "place UInt32, request_id String, at_ms Int64")


def newest_labels(client: Client, model: str, ids: Sequence[str]) -> pa.Table:
    """The newest label that was joined to each prediction among `ids`. Columns: id, at_ms, feedback_id, revision, truth,
    truth_value."""
    return _ask(
        client, NEWEST_LABELS, model, pa.record_batch({"id": pa.array(ids, pa.string())}), "id String"
    )


def _ask(client: Client, query: str, model: str, wanted: pa.RecordBatch, structure: str) -> pa.Table:
    external = ExternalData(
        data=encode_batch(wanted), file_name="wanted", fmt="ArrowStream", structure=structure
    )
    parameters: dict[str, Any] = {"model": model}
    try:
        return client.query_arrow(query, parameters=parameters, use_strings=True, external_data=external)
    except ClickHouseError as error:
        raise mapped(error) from error
