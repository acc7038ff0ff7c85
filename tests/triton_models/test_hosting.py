from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.artifacts import ArtifactStore
from schemas.errors import ArtifactError, SpecError
from schemas.spec import load_spec
from schemas.tensors import InputShape
from tests.triton_models.artifacts import Version, write_toy, write_version
from triton_models.hosting import Hosted, InputError, build_module, check_inputs, load


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    write_toy(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def loaded(store: ArtifactStore, models_dir: Path, version: Version) -> Hosted:
    return load(store.open("toy", version.artifact), models_dir)


def test_a_loaded_version_gives_the_scores_that_were_recorded(models_dir: Path, store: ArtifactStore) -> None:
    version = write_version(store, models_dir, "1.0")
    found = loaded(store, models_dir, version).scores(
        {name: torch.from_numpy(array) for name, array in version.inputs.items()}
    )
    assert np.array_equal(found.numpy(), version.scores)
    assert np.allclose(version.scores.sum(axis=1), 1)


def test_weights_trained_with_another_module_are_refused_naming_both_hashes(
    models_dir: Path, store: ArtifactStore
) -> None:
    version = write_version(store, models_dir, "1.0")
    expected = store.open("toy", version.artifact).manifest.module_sha256
    with (models_dir / "toy" / "model.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(ArtifactError, match=rf"has sha256 [0-9a-f]{{12}}…, expected {expected[:12]}…"):
        loaded(store, models_dir, version)


def test_a_version_that_does_not_answer_as_recorded_is_refused(
    models_dir: Path, store: ArtifactStore
) -> None:
    version = write_version(store, models_dir, "1.0", golden_error=0.01)
    with pytest.raises(ArtifactError, match=r"golden batch: scores differ .* by 0\.01, tolerance 1e-05"):
        loaded(store, models_dir, version)


def test_a_recorded_nan_is_no_answer(models_dir: Path, store: ArtifactStore) -> None:
    version = write_version(store, models_dir, "1.0", golden_error=float("nan"))
    with pytest.raises(ArtifactError, match="golden batch"):
        loaded(store, models_dir, version)


def test_two_models_may_call_their_file_and_class_the_same(models_dir: Path) -> None:
    other = models_dir / "other"
    other.mkdir()
    toy = (models_dir / "toy" / "model.toml").read_text()
    (other / "model.toml").write_text(toy.replace('"toy"', '"other"'))
    (other / "model.py").write_text((models_dir / "toy" / "model.py").read_text())
    one = build_module(models_dir, load_spec(models_dir / "toy"))
    two = build_module(models_dir, load_spec(other))
    assert type(one) is not type(two)
    assert type(one) is type(build_module(models_dir, load_spec(models_dir / "toy")))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, r"module: found 'model:Toy', but there is no .*model\.py"),
        ("def broken(:", r"model\.py: cannot be imported: SyntaxError: .*"),
        (
            "import no_such_package",
            r"cannot be imported: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("from torch import nn\nclass Other(nn.Module): pass", r"has no torch module 'Toy'; it has Other"),
        ("Toy = 3", r"has no torch module 'Toy'; it has none"),
        (
            "from torch import nn\nclass Toy(nn.Module):\n  def __init__(self, shape): raise KeyError('body')",
            r"Toy\(shape\) failed: KeyError: 'body'",
        ),
    ],
)
def test_a_module_that_cannot_be_built_is_one_line(
    models_dir: Path, source: str | None, message: str
) -> None:
    file = models_dir / "toy" / "model.py"
    if source is None:
        file.unlink()
    else:
        file.write_text(source)
    with pytest.raises(SpecError, match=message) as caught:
        build_module(models_dir, load_spec(models_dir / "toy"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dense", None, "dense: missing; found text_ids, text_offsets"),
        ("dense", torch.zeros(3, 2), r"dense: found \[3, 2\], expected \[rows, 3\]"),
        ("dense", torch.zeros(3, 3, dtype=torch.float64), "dense: found torch.float64"),
        ("dense", torch.zeros(2, 3), "rows differ between tensors: dense 2, text_offsets 3"),
        ("text_ids", torch.tensor([0, 50], dtype=torch.int32), r"text_ids: found 0 … 50, expected 0 … 49"),
        ("text_ids", torch.tensor([-1, 3], dtype=torch.int32), r"text_ids: found -1 … 3"),
        ("text_offsets", torch.tensor([0, 3, 3], dtype=torch.int32), "rise to at most 2"),
        ("text_offsets", torch.tensor([0, 2, 1], dtype=torch.int32), "rise to at most 2"),
        ("text_offsets", torch.tensor([1, 1, 1], dtype=torch.int32), "begin with 0"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name: str, value: torch.Tensor | None, message: str) -> None:
    inputs = {
        "dense": torch.zeros(3, 3),
        "text_ids": torch.tensor([1, 2], dtype=torch.int32),
        "text_offsets": torch.tensor([0, 2, 2], dtype=torch.int32),
    }
    check_inputs(InputShape(3, {"text": 50}, 2), inputs)
    if value is None:
        del inputs[name]
    else:
        inputs[name] = value
    with pytest.raises(InputError, match=message):
        check_inputs(InputShape(3, {"text": 50}, 2), inputs)


def test_a_batch_of_no_rows_has_no_scores(models_dir: Path, store: ArtifactStore) -> None:
    hosted = loaded(store, models_dir, write_version(store, models_dir, "1.0"))
    none = torch.zeros(0, dtype=torch.int32)
    found = hosted.scores({"dense": torch.zeros(0, 3), "text_ids": none, "text_offsets": none})
    assert found.shape == (0, 2)
