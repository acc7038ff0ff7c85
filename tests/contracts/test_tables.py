"""What moves and what rests have the same columns; the tables that an analyst guesses exist, every column with a comment."""

from __future__ import annotations

import re

import msgspec
import pytest

from schemas.arrow import OBSERVATION_COLUMNS, OUTCOME_COLUMNS, REPLAY_COLUMNS, Column
from schemas.events import (
    Alert,
    Candidate,
    DeadLetterDecision,
    DriftEvidence,
    Retrain,
    Rollout,
    RouteTable,
    WindowMetrics,
)
from warehouse.migrate import migrations

SQL = "\n".join(migration.text for migration in migrations())
GUESSED = (
    "predictions", "shadow_predictions", "feedback", "labels", "outcomes", "metrics", "drift", "alerts", "retrains", "candidates",
    "rollouts", "dead_letters", "dead_letter_decisions", "routes", "replays",
)  # fmt: skip


def columns_of(statement: str) -> dict[str, tuple[str, str]]:
    """Column → (type, comment) of the last CREATE statement that starts with `statement`, and of what was added to its table since."""
    body = SQL.rsplit(statement + " (\n", 1)[1].split("\n)", 1)[0]
    table = statement.rpartition(" ")[2]
    added = re.findall(rf"^ALTER TABLE {re.escape(table)} ADD COLUMN IF NOT EXISTS (.+);$", SQL, re.MULTILINE)
    body = "\n".join([body, *(f"    {column}" for column in added)])
    found = {}
    for line in body.splitlines():
        match = re.fullmatch(r"    `(\w+)` (.+?) COMMENT '(.*)',?", line)
        assert match is not None, f"{statement}: a column without a comment: {line}"
        found[match[1]] = (match[2], match[3].replace("\\'", "'"))
    return found


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("internal.observations", OBSERVATION_COLUMNS),
        ("internal.outcomes", OUTCOME_COLUMNS),
        ("internal.replays", REPLAY_COLUMNS),
    ],
)
def test_arrow_columns_are_the_tables_columns(table: str, columns: tuple[Column, ...]) -> None:
    declared = columns_of(f"CREATE TABLE IF NOT EXISTS {table}")
    arriving = {name: kind for name, kind in declared.items() if " MATERIALIZED " not in kind[0]}
    assert arriving == {column.name: (column.clickhouse, column.meaning) for column in columns}


def test_the_view_of_replays_has_every_column_that_arrives() -> None:
    assert set(columns_of("CREATE OR REPLACE VIEW default.replays")) == {
        column.name for column in REPLAY_COLUMNS
    }


@pytest.mark.parametrize(
    ("table", "event"),
    [
        ("metrics", WindowMetrics), ("drift", DriftEvidence), ("alerts", Alert), ("retrains", Retrain),
        ("candidates", Candidate), ("rollouts", Rollout), ("routes", RouteTable), ("dead_letter_decisions", DeadLetterDecision),
    ],
)  # fmt: skip
def test_event_fields_are_the_tables_columns(table: str, event: type[msgspec.Struct]) -> None:
    assert set(columns_of(f"CREATE TABLE IF NOT EXISTS internal.{table}")) == set(event.__struct_fields__)


@pytest.mark.parametrize("view", GUESSED)
def test_every_column_an_analyst_sees_has_a_comment(view: str) -> None:
    assert all(comment for _, comment in columns_of(f"CREATE OR REPLACE VIEW default.{view}").values())


def test_no_partition_key_or_view_reads_the_clock() -> None:
    statements = [statement for migration in migrations() for statement in migration.statements]
    assert [
        found for found in statements if re.search(r"\b(now|now64|today)\s*\(", found, re.IGNORECASE)
    ] == []
