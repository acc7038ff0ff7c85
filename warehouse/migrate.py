"""The migration runner: numbered SQL files, each applied once, in order; statements are idempotent, so a crash between is healed
by running again."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from typing import Final, NamedTuple

from clickhouse_connect.driver.client import Client

from schemas.errors import TidemillError

_FILE: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql\Z")
_LEDGER: Final = """
CREATE TABLE IF NOT EXISTS default.schema_migrations (
    number UInt32 COMMENT 'Number of the migration',
    name String COMMENT 'File name',
    sha256 String COMMENT 'Hash of the file as it was applied',
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'When it was applied'
) ENGINE = ReplacingMergeTree ORDER BY number COMMENT 'Migrations that were applied'
"""


class Migration(NamedTuple):
    """One numbered file."""

    number: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def statements(self) -> list[str]:
        """Its statements, comments left out."""
        lines = [line for line in self.text.splitlines() if not line.lstrip().startswith("--")]
        return [
            statement.strip() for statement in "\n".join(lines).split(";\n") if statement.strip().rstrip(";")
        ]


def migrations() -> list[Migration]:
    """All migrations in order of number.

    Raises:
        TidemillError: a number is missing or taken twice.
    """
    found = sorted(
        Migration(int(path.name[:4]), path.name, path.read_text(encoding="utf-8"))
        for path in files("schemas.migrations").iterdir()
        if _FILE.match(path.name)
    )
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise TidemillError(
            f"schemas/migrations: expected 0001, 0002, … without gaps, found {[m.name for m in found]}"
        )
    return found


def migrate(client: Client) -> list[str]:
    """Apply what is missing; return the names of what was applied.

    Raises:
        TidemillError: a migration that was applied has been altered since.
    """
    client.command(_LEDGER)
    rows = client.query("SELECT number, sha256 FROM default.schema_migrations FINAL").result_rows
    applied: dict[int, str] = {row[0]: row[1] for row in rows}
    new = []
    for migration in migrations():
        if migration.number in applied:
            if applied[migration.number] != migration.sha256:
                raise TidemillError(
                    f"{migration.name} was altered after it was applied: add a new migration instead"
                )
            continue
        for statement in migration.statements:
            client.command(statement)
        client.insert(
            "default.schema_migrations",
            [[migration.number, migration.name, migration.sha256]],
            column_names=["number", "name", "sha256"],
        )
        new.append(migration.name)
    return new
