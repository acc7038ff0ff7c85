"""Restore a backup into a new data folder.

Nothing is written before every byte of the backup was checked, and the folder gets its name only when all is restored and proven: an
interrupted restore leaves no data folder, and is started over. Topics are new, with new ids: no old request is read again, no new one can
have an old one's id.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from compose.backup import topics
from compose.backup.chain import Chain
from compose.backup.create import STATEMENT_TIMEOUT_SEC, Say, readable_errors, seen
from compose.embedded.running import owner_pid, restoring_dir
from compose.embedded.stack import Stack
from compose.embedded.variation import VARIABLE, Variation
from compose.setup import set_up
from control.audit import audit
from runtime.artifacts import ArtifactStore
from runtime.settings import Settings
from schemas.artifact import ARTIFACT
from schemas.backup import WAREHOUSE, BackupManifest
from schemas.errors import UserError
from warehouse import backup as warehouse
from warehouse.client import connect
from warehouse.migrate import migrations


class Corrupted(UserError):
    exit_code = 1


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What was restored, all of it compared with the backup."""

    name: str
    data: str
    rows: int
    records: int
    artifacts: int
    files: int
    took_sec: float


def restore(folder: Path, data_dir: Path, *, at: str = "", say: Say = print) -> Restored:
    """Restore the backup `at` (the newest by default) of the chain in `folder` into the empty or new folder `data_dir`.

    Raises:
        UserError: `data_dir` holds something, or `at` names no backup.
        Corrupted: a file of the backup or of one that it builds on is missing or altered; nothing was written.
        Differs: what was restored is not what the manifest says; `data_dir` is not there then.
    """
    started = time.monotonic()
    chain, data_dir = Chain(folder), data_dir.resolve()
    with readable_errors(data_dir), contextlib.ExitStack() as claims:
        _refuse(chain, data_dir)
        name = chain.choose(at)
        say(f"checking {name}")
        faults, _ = chain.check([name])
        if faults:
            lines = "; ".join(f"{fault.path} {fault.problem}" for fault in faults[:3])
            raise Corrupted(
                f"{chain.folder}: {name} cannot be restored: {lines}{' …' if len(faults) > 3 else ''}"
            )
        manifest = chain.manifest(name)
        if manifest.migration > (newest := migrations()[-1].number):
            raise UserError(
                f"{name}: its tables are at migration {manifest.migration}, this program knows {newest}: use a newer one"
            )
        target = claims.enter_context(claimed(data_dir))
        _refuse(chain, data_dir)  # another restore may have ended meanwhile
        say("restoring artifacts")
        versions = _artifacts(chain, manifest, target / "artifacts")
        with _broker_and_warehouse(target) as settings:
            client = connect(
                settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password, timeout_sec=STATEMENT_TIMEOUT_SEC
            )  # fmt: skip
            say("restoring the warehouse")
            with seen(chain, target, manifest.chain):
                rows = warehouse.restore(client, f"{manifest.chain}/{name}/{WAREHOUSE}", manifest.tables)
            client.close()
            set_up(settings)
            say("restoring the control topics")
            records = topics.restore(
                settings,
                {name: topics.load(chain, copy) for name, copy in manifest.topics.items()},
                manifest.topics,
            )
            report = audit(settings, wait_sec=0)
            if not report.ok:
                raise warehouse.Differs(f"the audit of the restored deployment fails: {report.models}")
        if data_dir.exists():
            data_dir.rmdir()
        target.rename(data_dir)
    return Restored(
        name=name, data=str(data_dir), rows=rows, records=records, artifacts=versions, files=len(manifest.artifacts),
        took_sec=round(time.monotonic() - started, 3),
    )  # fmt: skip


@contextlib.contextmanager
def claimed(data_dir: Path) -> Iterator[Path]:
    """The folder in which this restore works and no other, empty. The kernel drops the claim with the process, and the folder may be renamed.

    Raises:
        UserError: another restore has it.
    """
    target = restoring_dir(data_dir)
    target.mkdir(parents=True, exist_ok=True)
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{target}: another restore is at work there") from None
        if owner_pid(target) is not None:
            raise UserError(f"{target}: the processes of a restore that was interrupted are still ending")
        for left in target.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()
        yield target
    finally:
        os.close(folder)


@contextlib.contextmanager
def _broker_and_warehouse(data_dir: Path) -> Iterator[Settings]:
    """Both set up on `data_dir`, on free ports, ended when left. Triton is not needed and not started."""
    difference = data_dir / "restoring.json"
    difference.write_bytes(msgspec.json.encode(Variation(held=["triton"])))
    with Stack(data_dir, services=(), environment={VARIABLE: str(difference)}) as stack:
        yield stack.settings
    difference.unlink()


def _refuse(chain: Chain, data_dir: Path) -> None:
    if data_dir.is_dir() and any(data_dir.iterdir()):
        raise UserError(f"--data {data_dir}: holds something, expected a folder that is empty or not there")
    if data_dir.exists() and not data_dir.is_dir():
        raise UserError(f"--data {data_dir}: is a file, expected a folder that is empty or not there")
    if chain.folder == data_dir or chain.folder in data_dir.parents:
        raise UserError(f"--data {data_dir}: lies in the chain {chain.folder}, expected a folder elsewhere")


def _artifacts(chain: Chain, manifest: BackupManifest, root: Path) -> int:
    """Write the store; return how many versions it has, each opened and checked."""
    for path, content in manifest.artifacts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(chain.object(content.sha256), root / path)
    store = ArtifactStore(root)
    versions = {path.rpartition("/")[0] for path in manifest.artifacts}
    names = [version.split("/") for version in versions if ARTIFACT.match(version.rpartition("/")[2])]
    for model, artifact in names:
        store.open(model, artifact)
    return len(names)
