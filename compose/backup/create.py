"""Make a backup while the stack runs.

The order makes it consistent: (1) wait until what was produced before has gone through; (2) snapshot the warehouse; (3) copy the control
topics as they were at one later moment; (4) copy the artifacts, and check that every version that the routes name is among them. So the
warehouse never knows a decision that the topics do not: what it lacks of theirs the sink writes again after a restore.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from confluent_kafka import KafkaException

from compose.backup import topics
from compose.backup.chain import Chain, contents_of
from compose.backup.settle import settle
from compose.embedded.clickhouse.engine import BACKUPS_DIR
from runtime.artifacts import ArtifactStore
from runtime.clock import now_ms
from runtime.settings import Settings
from schemas.artifact import ARTIFACT
from schemas.backup import WAREHOUSE, BackupManifest, Content, Kind, TopicCopy
from schemas.errors import Outage, TidemillError, UserError
from schemas.events import RouteTable
from schemas.topics import ROUTES
from training.rows import SNAPSHOTS
from warehouse import backup as warehouse
from warehouse.client import connect

FULL_EVERY_MS: Final = 31 * 86_400_000
STATEMENT_TIMEOUT_SEC: Final = 6 * 3600
_TRIES: Final = 3

Say = Callable[[str], None]


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was made."""

    name: str
    manifest: BackupManifest
    late: list[str]
    """Stages that had not handled what was there when it began."""
    took_sec: float


class NoSpace(UserError):
    exit_code = 5


def back_up(
    settings: Settings, folder: Path, *, data_dir: Path | None, full: bool = False, wait_sec: float = 30.0, say: Say = print
) -> Made:  # fmt: skip
    """Add a backup to the chain in `folder`. `data_dir` is the embedded stack's, None for another deployment: then ClickHouse must see
    `folder` itself below its `backups.allowed_path`.

    Raises:
        Busy: another one is being made.
        UserError: `folder` cannot be used, or the disk is full.
        Outage: Kafka or ClickHouse is away.
    """
    started, began_at_ms = time.monotonic(), now_ms()
    folder = folder.resolve()
    if data_dir is not None and (folder == data_dir.resolve() or data_dir.resolve() in folder.parents):
        raise UserError(
            f"--to {folder}: lies in the data folder {data_dir}, expected a folder that outlives it"
        )
    with readable_errors(folder):
        chain = Chain(folder)
        with chain.locked():
            base = _base(chain, full, began_at_ms)
            before = chain.manifest(base) if base else None
            seen_as = before.chain if before else (folder.name if data_dir is None else secrets.token_hex(4))
            say("waiting until what was produced before is in ClickHouse")
            late = settle(settings, wait_sec)
            client = connect(
                settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password, timeout_sec=STATEMENT_TIMEOUT_SEC
            )  # fmt: skip
            temporary = chain.temporary()
            try:
                with seen(chain, data_dir, seen_as), warehouse.snapshot(client) as taken:
                    say("copying control topics and artifacts")
                    copies, artifacts, object_bytes = _objects(settings, chain, before)
                    say("copying the warehouse")
                    warehouse.back_up(
                        client, taken, f"{seen_as}/{temporary.name}/{WAREHOUSE}", f"{seen_as}/{base}/{WAREHOUSE}" if base else ""
                    )  # fmt: skip
                    tables = warehouse.contents(client, taken.tables, of_snapshot=True)
                    migration = warehouse.migration(client)
                say("hashing what was written")
                files = dict(contents_of(temporary))
                kind: Kind = "incremental" if base else "full"
                manifest = BackupManifest(
                    kind=kind, created_at_ms=now_ms(), began_at_ms=began_at_ms, complete=not late, chain=seen_as, base=base,
                    migration=migration, tables=tables, topics=copies, artifacts=artifacts, files=files,
                    new_bytes=object_bytes + sum(content.size_bytes for content in files.values()),
                )  # fmt: skip
                name = chain.publish(temporary, manifest)
            finally:
                client.close()
                shutil.rmtree(temporary, ignore_errors=True)
    return Made(name=name, manifest=manifest, late=late, took_sec=round(time.monotonic() - started, 3))


@contextlib.contextmanager
def seen(chain: Chain, data_dir: Path | None, seen_as: str) -> Iterator[None]:
    """The embedded engine reads and writes backups below one folder of its own: a link there leads to the chain."""
    if data_dir is None:
        yield
        return
    link = data_dir / "clickhouse" / BACKUPS_DIR / seen_as
    link.unlink(missing_ok=True)
    link.symlink_to(chain.folder)
    try:
        yield
    finally:
        link.unlink(missing_ok=True)


@contextlib.contextmanager
def readable_errors(folder: Path) -> Iterator[None]:
    """A full disk or a folder that may not be written is one clear line; a broker that is away is an outage."""
    try:
        yield
    except KafkaException as error:
        raise Outage(f"Kafka: {error.args[0].str()}") from error
    except OSError as error:
        where = error.filename or folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{where}: no space left; the chain is as it was before") from error
        raise UserError(f"{where}: {error.strerror}") from error


def _base(chain: Chain, full: bool, at_ms: int) -> str:
    """The newest backup, if its full one is not older than a month and no full one is wanted."""
    names = chain.names()
    if full or not names:
        return ""
    oldest = chain.manifest(chain.lineage(names[-1])[-1])
    return names[-1] if at_ms - oldest.created_at_ms <= FULL_EVERY_MS else ""


def _objects(
    settings: Settings, chain: Chain, before: BackupManifest | None
) -> tuple[dict[str, TopicCopy], dict[str, Content], int]:
    """Control topics and artifacts that belong together, and the bytes that had to be written."""
    check = before is None  # a full backup mends objects that were damaged
    written = 0
    for _ in range(_TRIES):
        copies, topic_bytes = topics.export(settings, chain, before.topics if before else {}, check)
        artifacts, artifact_bytes = _artifacts(settings, chain, before, check)
        written += topic_bytes + artifact_bytes
        folders = {path.rpartition("/")[0] for path in artifacts}
        missing = [name for name in _routed(chain, copies[ROUTES.name]) if name not in folders]
        if not missing:
            return copies, artifacts, written
    raise TidemillError(
        f"the routes name artifacts that are not in {settings.artifacts_dir}: {', '.join(missing)}"
    )


def _artifacts(
    settings: Settings, chain: Chain, before: BackupManifest | None, check: bool
) -> tuple[dict[str, Content], int]:
    """Every version whole and checked, and the snapshots that they were trained on. Both never change: what the base has is not read."""
    known = before.artifacts if before else {}
    store = ArtifactStore(settings.artifacts_dir)
    found: dict[str, Content] = {}
    written = 0
    for model in sorted(path.name for path in settings.artifacts_dir.iterdir() if path.is_dir()):
        for artifact in store.artifacts(model):
            try:
                folder = store.open(model, artifact).folder
                paths = sorted(path for path in folder.iterdir() if path.is_file())
                new, copied = _kept(settings.artifacts_dir, chain, paths, known, check)
            except (TidemillError, FileNotFoundError):
                if (settings.artifacts_dir / model / artifact).exists():
                    raise
                continue  # pruned meanwhile: the routes are checked against what is left
            found |= new
            written += copied
        snapshots = sorted((settings.artifacts_dir / model / SNAPSHOTS).glob("[0-9a-f]*.parquet"))
        new, copied = _kept(settings.artifacts_dir, chain, snapshots, known, check)
        found |= new
        written += copied
    return found, written


def _kept(
    root: Path, chain: Chain, paths: list[Path], known: dict[str, Content], check: bool
) -> tuple[dict[str, Content], int]:
    found, written = {}, 0
    for path in paths:
        name = str(path.relative_to(root))
        if name in known:
            found[name] = known[name]
        else:
            found[name], new = chain.keep(path.read_bytes(), check=check)
            written += new
    return found, written


def _routed(chain: Chain, copy: TopicCopy) -> set[str]:
    """`model/artifact` of every version that the newest route tables name."""
    tables = {
        record.key: msgspec.json.decode(record.value, type=RouteTable)
        for record in topics.load(chain, copy)
        if record.value is not None
    }
    return {
        f"{table.model}/{artifact}"
        for table in tables.values()
        for artifact in {arm.artifact for arm in table.arms} | set(table.retained) | {table.previous}
        if ARTIFACT.match(artifact)
    }
