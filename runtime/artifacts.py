"""The artifact store: immutable folders, written whole or not at all, checked by hash before use.

An artifact is written under a temporary name, synced, and renamed; its folder's name ends in the first 12 hex digits of its
manifest's sha256, and the manifest holds the sha256 of every file. So whoever opens `1.3-0f2a…` gets those bytes or an error.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from schemas.artifact import (
    ARTIFACT,
    FEATURES,
    GOLDEN,
    GOLDEN_ROWS,
    MANIFEST,
    REFERENCE,
    SPEC,
    WEIGHTS,
    Manifest,
    References,
)
from schemas.errors import ArtifactError
from schemas.spec import ModelSpec, decode_spec

Arrays = dict[str, NDArray[Any]]
HASH_DIGITS: Final = 12


class Artifact:
    """One version, opened and checked. Arrays are read when asked for."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.name = folder.name
        self.manifest = manifest

    @property
    def spec(self) -> ModelSpec:
        """The spec that the version was trained with."""
        return decode_spec((self.folder / SPEC).read_text(encoding="utf-8"), str(self.folder / SPEC))

    @property
    def weights_path(self) -> Path:
        """safetensors of the torch module's state."""
        return self.folder / WEIGHTS

    @property
    def features(self) -> Arrays:
        """The feature state: arrays by name."""
        return _arrays(self.folder / FEATURES)

    @property
    def golden(self) -> Arrays:
        """`in.<input>` tensors and the `out.scores` recorded for them."""
        return _arrays(self.folder / GOLDEN)

    @property
    def golden_rows(self) -> pa.RecordBatch:
        """The golden batch before encoding: columns `numbers` and `texts`."""
        with pa.ipc.open_stream(self.folder / GOLDEN_ROWS) as reader:
            return reader.read_next_batch()

    @property
    def references(self) -> References:
        """Histograms that drift is measured against."""
        return msgspec.json.decode((self.folder / REFERENCE).read_bytes(), type=References)


class ArtifactStore:
    """All artifacts, under `root/<model>/<artifact>/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, model: str, artifact: str) -> Artifact:
        """The artifact, with every file's hash checked.

        Raises:
            ArtifactError: missing, half-written, altered, or not an artifact's name.
        """
        folder = self.root / model / artifact
        if ARTIFACT.match(artifact) is None:
            raise ArtifactError(
                f"{model}: {artifact!r} is no artifact's name, expected <major>.<update>-<{HASH_DIGITS} hex digits>"
            )
        try:
            raw = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise ArtifactError(f"{model}/{artifact}: not in the store {self.root}") from None
        if hashlib.sha256(raw).hexdigest()[:HASH_DIGITS] != artifact.rpartition("-")[2]:
            raise ArtifactError(f"{model}/{artifact}/{MANIFEST}: wrong hash, the manifest was altered")
        manifest = msgspec.json.decode(raw, type=Manifest)
        for name, expected in manifest.files.items():
            try:
                found = _sha256(folder / name)
            except FileNotFoundError:
                raise ArtifactError(f"{model}/{artifact}/{name}: missing") from None
            if found != expected:
                raise ArtifactError(
                    f"{model}/{artifact}/{name}: wrong hash: expected {expected[:12]}…, found {found[:12]}…"
                )
        return Artifact(folder, manifest)

    def write(self, manifest: Manifest, files: Mapping[str, bytes]) -> str:
        """Write an artifact whole and return its name. `manifest.files` is filled in here; the same content gives the same name."""
        manifest = msgspec.structs.replace(
            manifest, files={name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
        )
        raw = msgspec.json.encode(manifest)
        artifact = f"{manifest.version}-{hashlib.sha256(raw).hexdigest()[:HASH_DIGITS]}"
        target = self.root / manifest.model / artifact
        if target.exists():
            return artifact
        temporary = target.with_name(f".{artifact}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, data in {**files, MANIFEST: raw}.items():
            with (temporary / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        try:
            temporary.rename(target)
        except OSError:
            # Somebody wrote the same content at the same time: theirs is as good.
            shutil.rmtree(temporary, ignore_errors=True)
            if not target.exists():
                raise
        _sync(target.parent)
        return artifact

    def artifacts(self, model: str) -> list[str]:
        """Names of the model's artifacts, oldest version first."""
        found = [path.name for path in (self.root / model).glob("*") if ARTIFACT.match(path.name)]
        return sorted(found, key=lambda name: [int(part) for part in name.partition("-")[0].split(".")])

    def remove(self, model: str, artifact: str) -> None:
        """Remove an artifact; renamed first, so that nobody opens half of it."""
        folder = self.root / model / artifact
        doomed = folder.with_name(f".{artifact}.{os.getpid()}.removed")
        try:
            folder.rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)


def _arrays(path: Path) -> Arrays:
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise ArtifactError(f"{path}: {error}") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
