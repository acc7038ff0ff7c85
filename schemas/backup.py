"""The layout of a chain of backups: everything that nothing else could bring back, in one folder.

<chain>/
    objects/<sha256>                        what is immutable: artifacts' files, training snapshots, exported records; each once
    <time>-<full|incremental>-<hash12>/     one backup, written under a temporary name, synced and renamed
        manifest.json                       what is in here; the first 12 hex digits of its sha256 end the folder's name
        warehouse/                          ClickHouse's own BACKUP; an incremental one holds only what its base has not

Only add fields, always with defaults: old chains are restored by new programs.
"""

from __future__ import annotations

import re
import uuid
from typing import Final, Literal

import msgspec

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
WAREHOUSE: Final = "warehouse"
OBJECTS: Final = "objects"
HASH_DIGITS: Final = 12
NAME: Final = re.compile(r"\d{8}T\d{6}\.\d{3}Z-(full|incremental)-[0-9a-f]{12}\Z")
"""Names sort by time."""

Kind = Literal["full", "incremental"]


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """A file's bytes."""

    sha256: str
    size_bytes: int


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one partition of a table, in whatever order and parts they lie."""

    rows: int
    checksum: int
    """Sum of the rows' 64-bit hashes, modulo 2^64."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """One table as it was copied. Tables that materialized views fill are not copied: they are computed again."""

    final: bool
    """Counted as readers see it, through FINAL: a merge may drop replaced rows at any time."""
    partitions: dict[str, Partition]


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A run of exported records: an object, a msgpack array of `Record`."""

    content: Content
    records: int


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One record of a topic."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


class TopicCopy(msgspec.Struct, frozen=True, kw_only=True):
    """A control topic's committed records, oldest first, and how far its readers had come."""

    topic_id: uuid.UUID
    segments: list[Segment]
    ends: dict[int, int]
    """Partition → offset up to which it was read."""
    positions: dict[str, dict[int, int]]
    """Consumer group → partition → next offset that it had not handled."""


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup is."""

    format: int = FORMAT
    kind: Kind
    created_at_ms: int
    began_at_ms: int
    """What was produced before is in here if `complete`."""
    complete: bool
    """Whether all stages had handled what was there when the backup began."""
    chain: str
    """Folder below ClickHouse's `backups.allowed_path` as which it sees the chain."""
    base: str
    """Backup that this one builds on, "" for a full one."""
    migration: int
    """Number of the last migration of the tables."""
    tables: dict[str, Table]
    topics: dict[str, TopicCopy]
    artifacts: dict[str, Content]
    """Path in the artifact store → object."""
    files: dict[str, Content]
    """Path in the backup's folder → its bytes, the manifest left out."""
    new_bytes: int
    """Written for this backup: its files, and objects that the chain did not have."""
