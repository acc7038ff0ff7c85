import hashlib
import json
import os
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from compose.embedded import parts
from compose.embedded.parts import Archive, Part, PartError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path / "parts"))
    return tmp_path / "parts"


def wheel(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "example-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("example/data/one.csv", "1\n")
        archive.writestr("example/bin/run", "#!/bin/sh\n")
        archive.writestr("example/unwanted", "")
        archive.writestr(
            "example-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: example\nVersion: 1.0\n"
        )
        archive.writestr(
            "example-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("example-1.0.dist-info/RECORD", "")
    return file


def example(file: Path) -> Part:
    rules = {"example/data/one.csv": "one.csv", "example/bin/": "bin/"}
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    archive = Archive("example==1.0", digest, ["--no-index", "--find-links", str(file.parent)], rules)
    return Part("example", "an example", 1, 1, [archive], [], {}, ["bin/run"])


def test_a_part_is_fetched_extracted_by_rule_and_complete(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = example(wheel(tmp_path / "wheels"))
    monkeypatch.setattr(parts, "table", lambda: [part])
    assert parts.missing() == [part]
    parts.fetch(part, parts.pip_command(), lambda _: None)
    assert parts.missing() == []
    folder = parts.path("example")
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()) == [
        "bin/run", "manifest.json", "one.csv",
    ]  # fmt: skip
    assert os.access(folder / "bin" / "run", os.X_OK)


def test_an_archive_from_an_interrupted_fetch_is_used_without_downloading(
    cache: Path, tmp_path: Path
) -> None:
    part = example(wheel(cache / ".downloads"))
    parts.fetch(part, ["false"], lambda _: None)  # a pip that can do nothing
    assert (cache / "example" / "one.csv").read_text() == "1\n"


def test_an_archive_of_another_content_is_refused_and_leaves_no_part(cache: Path, tmp_path: Path) -> None:
    part = example(wheel(tmp_path / "wheels"))
    part = replace(part, archives=[replace(part.archives[0], sha256="0" * 64)])
    with pytest.raises(PartError, match=r"cannot download example==1\.0"):
        parts.fetch(part, parts.pip_command(), lambda _: None)
    assert not (cache / "example").exists()


def test_an_archive_without_the_wanted_file_is_named(cache: Path, tmp_path: Path) -> None:
    part = example(wheel(cache / ".downloads"))
    part = replace(part, archives=[replace(part.archives[0], extract={"example/other.csv": "other.csv"})])
    with pytest.raises(PartError, match=r"lacks example/other\.csv"):
        parts.fetch(part, ["false"], lambda _: None)
    assert not (cache / "example").exists()


def test_a_part_of_an_older_table_no_longer_counts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = example(wheel(cache / ".downloads"))
    parts.fetch(part, ["false"], lambda _: None)
    monkeypatch.setattr(parts, "table", lambda: [replace(part, executable=[])])
    with pytest.raises(PartError, match="'example' is not in"):
        parts.path("example")


def test_an_altered_file_is_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = example(wheel(cache / ".downloads"))
    parts.fetch(part, ["false"], lambda _: None)
    monkeypatch.setattr(parts, "table", lambda: [part])
    assert parts.damaged() == []
    (cache / "example" / "one.csv").write_text("2\n")
    assert parts.damaged() == ["example/one.csv"]


def test_the_table_states_a_size_and_a_hash_for_everything() -> None:
    table = parts.table()
    assert [part.name for part in table] == ["tritonserver", "kafka", "datasets"]
    for part in table:
        assert part.download_bytes > 0
        assert part.disk_bytes > 0
        assert all(len(archive.sha256) == 64 for archive in part.archives)
        assert not part.jars or all(len(digest) == 64 for digest in part.jar_hashes.values())
    assert tomllib.loads(parts.TABLE_FILE.read_text())["python"]["disk_bytes"] > 0


def test_an_unknown_part_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        PartError, match="no part is named 'zookeeper'; there are tritonserver, kafka, datasets"
    ):
        parts.path("zookeeper")


def test_the_manifest_is_json(cache: Path) -> None:
    part = example(wheel(cache / ".downloads"))
    parts.fetch(part, ["false"], lambda _: None)
    assert set(json.loads((cache / "example" / parts.MANIFEST).read_text())) == {"digest", "files"}
