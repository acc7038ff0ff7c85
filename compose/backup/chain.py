"""A chain of backups on disk: its folders, its objects, and the proof that nothing of it was lost or altered.

What is written is written under a temporary name, synced and renamed. So a backup is there whole or not at all, and an interrupted one
leaves the chain as it was; what it left behind is removed by the next.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from schemas.backup import (
    FORMAT,
    HASH_DIGITS,
    MANIFEST,
    NAME,
    OBJECTS,
    BackupManifest,
    Content,
)
from schemas.errors import UserError

_TEMPORARY: Final = ".writing"
_CHUNK_BYTES: Final = 1 << 20


class Fault(NamedTuple):
    """A file that is missing or altered."""

    path: str
    """Below the chain's folder."""
    problem: str
    backups: list[str]
    """Backups that need it."""


class Busy(UserError):
    exit_code = 3


class Chain:
    """The backups in `folder`. Writing needs `locked`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder, keeps other writers out, and removes what an interrupted one left behind.

        Raises:
            Busy: another backup is being written here.
        """
        (self.folder / OBJECTS).mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"{self.folder}: another backup is being written there") from None
            for left in [
                *self.folder.glob(f"{_TEMPORARY}*"),
                *(self.folder / OBJECTS).glob(f"{_TEMPORARY}*"),
            ]:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield

    def names(self) -> list[str]:
        """All backups, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if NAME.match(path.name))

    def manifest(self, name: str) -> BackupManifest:
        """What the backup is, its hash checked.

        Raises:
            UserError: it is not there, altered, or of a newer program.
        """
        try:
            raw = (self.folder / name / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.folder}: {name}/{MANIFEST} is missing") from None
        if hashlib.sha256(raw).hexdigest()[:HASH_DIGITS] != name.rpartition("-")[2]:
            raise UserError(
                f"{self.folder}: {name}/{MANIFEST} is corrupted: its hash is not the one in its name"
            )
        try:
            manifest = msgspec.json.decode(raw, type=BackupManifest)
        except msgspec.DecodeError as error:
            raise UserError(f"{self.folder}: {name}/{MANIFEST} cannot be read: {error}") from None
        if manifest.format > FORMAT:
            raise UserError(
                f"{self.folder}: {name} has format {manifest.format}, this program knows {FORMAT}: use a newer one"
            )
        return manifest

    def choose(self, at: str = "") -> str:
        """The backup that `at` names (a beginning of its name that no other has), the newest by default.

        Raises:
            UserError: there is none, or there are several.
        """
        names = self.names()
        if not names:
            raise UserError(f"{self.folder}: there is no backup; make one with `tidemill backup --to DIR`")
        found = [name for name in names if name.startswith(at)] if at else names[-1:]
        if len(found) != 1:
            raise UserError(f"--at: found {at!r}, expected one of {', '.join(names)}")
        return found[0]

    def lineage(self, name: str) -> list[str]:
        """The backup, its base, that one's base …, down to the full one.

        Raises:
            UserError: one of them cannot be read.
        """
        found = [name]
        while base := self.manifest(found[-1]).base:
            found.append(base)
        return found

    def object(self, sha256: str) -> Path:
        """Where an object lies."""
        return self.folder / OBJECTS / sha256

    def keep(self, data: bytes, *, check: bool = False) -> tuple[Content, int]:
        """Store an object; return what it is and how many bytes had to be written. `check` reads one that is there, and mends it."""
        content = Content(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        target = self.object(content.sha256)
        if (
            target.exists()
            and target.stat().st_size == len(data)
            and not (check and _problem(target, content))
        ):
            return content, 0
        temporary = target.with_name(f"{_TEMPORARY}-{content.sha256}")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)
        return content, len(data)

    def temporary(self) -> Path:
        """A folder for a backup that is being written. Its name is new: ClickHouse may still write what a killed one asked for."""
        path = self.folder / f"{_TEMPORARY}-{secrets.token_hex(4)}"
        path.mkdir()
        return path

    def publish(self, temporary: Path, manifest: BackupManifest) -> str:
        """Give the backup its manifest and its name, all of it on disk; return the name."""
        raw = msgspec.json.format(msgspec.json.encode(manifest))
        (temporary / MANIFEST).write_bytes(raw)
        for path in [*temporary.rglob("*"), temporary, self.folder / OBJECTS]:
            _sync(path)
        at = time.strftime("%Y%m%dT%H%M%S", time.gmtime(manifest.created_at_ms / 1000))
        digest = hashlib.sha256(raw).hexdigest()[:HASH_DIGITS]
        name = f"{at}.{manifest.created_at_ms % 1000:03d}Z-{manifest.kind}-{digest}"
        temporary.rename(self.folder / name)
        _sync(self.folder)
        return name

    def check(self, names: list[str]) -> tuple[list[Fault], int]:
        """Every byte that `names` need, hashed: what is wrong, and the bytes that were read. A fault counts for all backups that build on it."""
        faults: dict[str, Fault] = {}
        checked: dict[str, str] = {}
        read_bytes = 0
        for name in names:
            wanted: dict[str, Content] = {}
            step = name
            while step:
                try:
                    manifest = self.manifest(step)
                except UserError as error:
                    path = f"{step}/{MANIFEST}"
                    faults.setdefault(
                        path, Fault(path, str(error).partition(f"{MANIFEST} ")[2], [])
                    ).backups.append(name)
                    break
                wanted |= {f"{step}/{path}": content for path, content in manifest.files.items()}
                if step == name:
                    wanted |= {f"{OBJECTS}/{content.sha256}": content for content in objects(manifest)}
                step = manifest.base
            for path, content in wanted.items():
                if path not in checked:
                    checked[path] = _problem(self.folder / path, content)
                    read_bytes += content.size_bytes
                if checked[path]:
                    faults.setdefault(path, Fault(path, checked[path], [])).backups.append(name)
        return list(faults.values()), read_bytes


def objects(manifest: BackupManifest) -> Iterator[Content]:
    """All objects that the backup needs."""
    yield from manifest.artifacts.values()
    for topic in manifest.topics.values():
        yield from (segment.content for segment in topic.segments)


def contents_of(folder: Path) -> Mapping[str, Content]:
    """All files below `folder`, by path."""
    return {
        str(path.relative_to(folder)): Content(sha256=_sha256(path), size_bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _problem(path: Path, expected: Content) -> str:
    """What is wrong with a file, "" if nothing is."""
    try:
        size = path.stat().st_size
        if size != expected.size_bytes:
            return f"has {size} bytes, expected {expected.size_bytes}"
        return "" if _sha256(path) == expected.sha256 else "is corrupted: wrong hash"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
