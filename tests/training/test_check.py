from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from schemas.spec import load_spec
from training.check import check, synthetic_rows

MODELS_DIR = Path(__file__).parents[2] / "triton_models"
SPEC = """
name = "mine"
task = "binary"
classes = ["no", "yes"]
module = "model:Mine"
[features]
x = { type = "float", min = -1, max = 1, missing = "mean" }
n = { type = "int", max = 10 }
flag = { type = "bool" }
colour = { type = "category", values = ["red", "blue"], unknown = "other", missing = "other" }
text = { type = "text", buckets = 50, missing = "empty" }
"""
MODULE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.bag = nn.EmbeddingBag(shape.texts["text"], 4)
        self.head = nn.Linear(4 + shape.dense, shape.outputs)

    def forward(self, inputs):
        bag = self.bag(inputs["text_ids"], inputs["text_offsets"])
        return self.head(torch.cat([inputs["dense"], bag], dim=1))
"""
RETURN = 'return self.head(torch.cat([inputs["dense"], bag], dim=1))'


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model.toml").write_text(SPEC)
    (folder / "model.py").write_text(MODULE)
    return tmp_path


@pytest.mark.parametrize("name", sorted(path.parent.name for path in MODELS_DIR.glob("*/model.toml")))
def test_the_models_that_come_with_the_project_pass_every_check(name: str) -> None:
    assert [result for result in check(MODELS_DIR, name) if not result.ok] == []


def test_a_sound_model_passes_seven_checks(models_dir: Path) -> None:
    results = check(models_dir, "mine")
    assert [(result.name, result.ok) for result in results] == [
        (name, True)
        for name in ("spec", "module", "encoding", "forward", "independent rows", "gradients", "golden batch")
    ]
    assert results[1].detail == "model:Mine: 220 parameters, 0.00 MB a version"


@pytest.mark.parametrize(
    ("old", "new", "name", "detail"),
    [
        ("class Mine", "class Other", "module", "has no torch module 'Mine'; it has Other"),
        ('shape.texts["text"]', 'shape.texts["body"]', "module", "Mine(shape) failed: KeyError: 'body'"),
        ('inputs["dense"]', 'inputs["numbers"]', "forward", "KeyError: 'numbers'"),
        ("shape.outputs)", "3)", "forward", "found [64, 3], expected [64, 2]"),
        (RETURN, RETURN + " / 0", "forward", "logits that are NaN or infinite"),
        (RETURN, f"x = {RETURN[7:]}; return x - x.mean(dim=0)", "independent rows", "a row's scores differ by"),
        (RETURN, RETURN + ".squeeze()", "independent rows", "IndexError: Dimension out of range"),
        (RETURN, RETURN + " + torch.randn(1)[0] * inputs['dense']" + "[:, :2]", "independent rows", "a row's scores differ"),
        (RETURN, RETURN.replace("bag]", "bag.detach()]"), "gradients", "none reaches bag.weight"),
        (
            "self.head = nn.Linear(4 + shape.dense, shape.outputs)",
            "self.heads = [nn.Linear(4 + shape.dense, shape.outputs)]; self.head = lambda x: self.heads[0](x)",
            "golden batch", "after the weights were stored and read back",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_the_module_fails_one_check_with_a_mend(
    models_dir: Path, old: str, new: str, name: str, detail: str
) -> None:
    assert old in MODULE
    (models_dir / "mine" / "model.py").write_text(MODULE.replace(old, new))
    failed = [result for result in check(models_dir, "mine") if not result.ok]
    assert [result.name for result in failed] == [name]
    for result in failed:
        assert detail in result.detail
        assert "\n" not in result.detail
        assert result.mend


def test_a_broken_spec_ends_the_checks_with_its_line(models_dir: Path) -> None:
    (models_dir / "mine" / "model.toml").write_text(SPEC.replace('"binary"', '"guess"'))
    (result,) = check(models_dir, "mine")
    assert (result.name, result.ok) == ("spec", False)
    assert "task: Invalid enum value 'guess'" in result.detail


def test_a_model_that_is_not_there_ends_the_checks(models_dir: Path) -> None:
    (result,) = check(models_dir, "yours")
    assert "no model 'yours'" in result.detail


def test_synthetic_rows_stay_within_the_spec_and_use_what_it_allows(models_dir: Path) -> None:
    spec = load_spec(models_dir / "mine")
    rows = synthetic_rows(spec, 500, seed=1)
    x, n, flag = rows.numbers.T
    assert 0 < np.isnan(x).sum() < 150
    assert np.nanmin(x) >= -1
    assert np.nanmax(x) <= 1
    assert (n == np.round(n)).all()
    assert n.max() <= 10
    assert set(flag.tolist()) == {0, 1}
    assert set(rows.text(0).to_pylist()) == {"", "red", "blue", "none of them"}
    assert {"" in rows.text(1).to_pylist(), max(map(len, rows.text(1).to_pylist())) > 100} == {True}
