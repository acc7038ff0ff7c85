"""Migrations that move rows: none is lost, wherever the first try was cut off, and what the move was for is there afterwards."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.external import ExternalData

from schemas.arrow import OUTCOMES, encode_batch
from schemas.identity import prediction_ids
from tests.compose.clickhouse_server import start, stop
from tests.streams.sink.world import MODEL, observations
from warehouse import lookups
from warehouse.migrate import migrate, migrations

ROWS = 20_000
SOURCE = uuid.UUID(int=1)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    server = start(tmp_path)
    made = server.client(writer=True)
    yield made
    made.close()
    assert stop(server) == 0


def apply(client: Client, statements: Sequence[str]) -> None:
    for statement in statements:
        client.command(statement)


def insert(client: Client, table: str, batch: pa.RecordBatch) -> None:
    client.raw_insert(
        table, insert_block=encode_batch(batch), settings={"insert_deduplicate": 0}, fmt="ArrowStream"
    )


def write(client: Client, first: int) -> None:
    """A minute of predictions, and a label on each."""
    for second in range(60):
        count = ROWS // 60
        batch = observations(SOURCE, first + second * count, count, at_ms=(first + second) * 1000)
        insert(client, "internal.observations", batch)
        columns = [
            batch[name] if name in batch.schema.names else pa.nulls(count, kind).fill_null(_nothing(kind))
            for name, kind in zip(OUTCOMES.names, OUTCOMES.types, strict=True)
        ]
        insert(client, "internal.outcomes", pa.record_batch(columns, OUTCOMES))


def _nothing(kind: pa.DataType) -> pa.Scalar:
    if pa.types.is_list(kind):
        return pa.scalar([], kind)
    if pa.types.is_fixed_size_binary(kind):
        return pa.scalar(bytes(16), kind)
    return pa.scalar("" if pa.types.is_string(kind) else 0).cast(kind)


def count(client: Client, rows_of: str) -> int:
    return int(client.query(f"SELECT count() FROM {rows_of}").result_rows[0][0])


def test_look_ups_are_moved_whole_wherever_it_was_cut_off(client: Client) -> None:
    before, (moving,) = migrations()[:11], [each for each in migrations() if each.number == 12]
    for migration in before:
        apply(client, migration.statements)
    write(client, 0)
    expected = count(client, "internal.outcomes FINAL")
    assert expected == ROWS // 60 * 60
    for cut_off in range(len(moving.statements) + 1):
        apply(client, moving.statements[:cut_off])
        apply(client, moving.statements)
        found = client.query("SELECT uniqExact(prediction_id), count() FROM internal.prediction_lookup")
        assert found.result_rows == [(expected, expected)], moving.statements[:cut_off][-1:]
        assert count(client, "internal.outcomes FINAL") == expected, moving.statements[:cut_off][-1:]
    write(client, 10**6)
    assert count(client, "internal.prediction_lookup") == 2 * expected, "the view is there again"


def test_labels_of_the_same_seconds_read_little_of_the_tables(client: Client) -> None:
    migrate(client)
    write(client, 0)
    apply(client, [f"OPTIMIZE TABLE internal.{name} FINAL" for name in ("prediction_lookup", "outcomes")])
    offsets = np.arange(300, dtype=np.int64)
    ids = prediction_ids(np.zeros_like(offsets), [(SOURCE, 0, len(offsets))], offsets, np.zeros_like(offsets))
    wanted = pa.record_batch({"id": pa.array([str(uuid.UUID(bytes=one.tobytes())) for one in ids])})
    for query, most in ((lookups.PREDICTIONS, 3 * 256), (lookups.NEWEST_LABELS, 3 * 1024)):
        external = ExternalData(
            data=encode_batch(wanted), file_name="wanted", fmt="ArrowStream", structure="id String"
        )
        found = client.query(query, parameters={"model": MODEL}, external_data=external)
        assert len(found.result_rows) == len(ids)
        assert int(found.summary["read_rows"]) <= most + len(ids), query
