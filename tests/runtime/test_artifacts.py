"""An artifact is whole and unaltered, or it is refused."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from runtime.artifacts import ArtifactStore
from schemas.artifact import FEATURES, MANIFEST, WEIGHTS, Manifest
from schemas.errors import ArtifactError


def manifest(version: str = "1.0") -> Manifest:
    return Manifest(
        model="m", version=version, base="", module="model:M", module_sha256="", temperature=1.0, tolerance=1e-4, seed=1,
        rows=10, created_at_ms=0, label_from_ms=0, label_to_ms=0, files={},
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def test_what_is_written_is_opened_and_the_same_content_has_the_same_name(store: ArtifactStore) -> None:
    name = store.write(manifest(), {WEIGHTS: b"weights"})
    assert store.write(manifest(), {WEIGHTS: b"weights"}) == name
    assert store.open("m", name).manifest.files.keys() == {WEIGHTS}
    assert store.write(manifest(), {WEIGHTS: b"other"}) != name


def test_an_altered_file_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    name = store.write(manifest(), {WEIGHTS: b"weights"})
    (tmp_path / "m" / name / WEIGHTS).write_bytes(b"altered")
    with pytest.raises(ArtifactError, match=r"weights\.safetensors: wrong hash"):
        store.open("m", name)


def test_an_altered_manifest_and_a_missing_file_are_refused(store: ArtifactStore, tmp_path: Path) -> None:
    name = store.write(manifest(), {WEIGHTS: b"weights"})
    (tmp_path / "m" / name / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        store.open("m", name)
    (tmp_path / "m" / name / MANIFEST).write_bytes(msgspec.json.encode(manifest("1.1")))
    with pytest.raises(ArtifactError, match="the manifest was altered"):
        store.open("m", name)


@pytest.mark.parametrize("name", ["1.0-000000000000", "../etc", "1.0", ".1.0-000000000000.7.tmp"])
def test_what_is_not_there_is_one_clear_line(store: ArtifactStore, name: str) -> None:
    with pytest.raises(ArtifactError):
        store.open("m", name)


def test_a_half_written_artifact_is_not_listed(store: ArtifactStore, tmp_path: Path) -> None:
    names = [store.write(manifest(version), {}) for version in ("1.10", "1.9", "2.0")]
    (tmp_path / "m" / ".1.11-000000000000.7.tmp").mkdir()
    assert store.artifacts("m") == [names[1], names[0], names[2]]
    store.remove("m", names[0])
    assert store.artifacts("m") == [names[1], names[2]]


class Killed(BaseException):
    """The process ends here: nobody catches it, nothing is tidied up."""


@pytest.mark.parametrize("survived", range(4))
def test_a_kill_at_any_step_of_writing_leaves_nothing_that_can_be_opened(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    steps = iter(range(survived))
    sync, rename = os.fsync, Path.rename

    def step() -> None:
        if next(steps, None) is None:
            raise Killed

    def synced(descriptor: int) -> None:
        step()
        sync(descriptor)

    def renamed(source: Path, target: Path) -> Path:
        step()
        return rename(source, target)

    files = {WEIGHTS: b"weights", FEATURES: b"features"}
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", synced)
        patched.setattr(Path, "rename", renamed)
        with pytest.raises(Killed):
            store.write(manifest("1.0"), files)
    assert store.artifacts("m") == []
    (left,) = (tmp_path / "m").iterdir()
    with pytest.raises(ArtifactError):
        store.open("m", left.name)
    name = store.write(manifest("1.0"), files)
    assert store.artifacts("m") == [name]
    assert (store.open("m", name).folder / WEIGHTS).read_bytes() == b"weights"
