from __future__ import annotations

from pathlib import Path

from tests.triton_models.artifacts import write_toy
from triton_models.triton_config import BACKEND, write_repository


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_spec_becomes_a_triton_model_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_toy(tmp_path / 'a "quoted" models')
    names = write_repository(tmp_path / 'a "quoted" models', tmp_path / "artifacts", tmp_path / "repository")
    assert names == ["toy"]
    found = files(tmp_path / "repository")
    assert set(found) == {"toy/config.pbtxt", "toy/1/model.py"}
    assert found["toy/1/model.py"] == BACKEND.read_bytes()
    lines = found["toy/config.pbtxt"].decode().splitlines()
    assert lines[:5] == [
        'name: "toy"',
        'backend: "python"',
        "max_batch_size: 0",
        'input [{ name: "dense", data_type: TYPE_FP32, dims: [-1, 3] }, '
        '{ name: "text_ids", data_type: TYPE_INT32, dims: [-1] }, '
        '{ name: "text_offsets", data_type: TYPE_INT32, dims: [-1] }]',
        'output [{ name: "scores", data_type: TYPE_FP32, dims: [-1, 2] }]',
    ]
    assert r"a \"quoted\" models" in found["toy/config.pbtxt"].decode()


def test_writing_again_touches_only_what_has_changed(tmp_path: Path) -> None:
    write_toy(tmp_path / "models")
    arguments = tmp_path / "models", tmp_path / "artifacts", tmp_path / "repository"
    write_repository(*arguments)
    config, backend = (tmp_path / "repository" / "toy" / name for name in ("config.pbtxt", "1/model.py"))
    first = files(tmp_path / "repository")
    config.write_text("old")
    inode = backend.stat().st_ino
    write_repository(*arguments)
    assert files(tmp_path / "repository") == first
    assert backend.stat().st_ino == inode
