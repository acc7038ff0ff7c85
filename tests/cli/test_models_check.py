"""`tidemill models check`: a line for each check, the mend of the one that fails, and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.__main__ import main

SPEC = """
name = "mine"
task = "binary"
classes = ["no", "yes"]
module = "model:Mine"
[features]
x = { type = "float", min = 0, max = 1 }
[monitor]
segments = ["x:4"]
"""
MODULE = """
from torch import nn

class Mine(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.head = nn.Linear(shape.dense, shape.outputs)

    def forward(self, inputs):
        return self.head(inputs["dense"])
"""


def check(folder: Path, spec: str, module: str | None, *options: str) -> Result:
    (folder / "mine").mkdir()
    (folder / "mine" / "model.toml").write_text(spec)
    if module is not None:
        (folder / "mine" / "model.py").write_text(module)
    return CliRunner().invoke(
        main, ["models", "check", "mine", *options], env={"TIDEMILL_MODELS_DIR": str(folder)}
    )


def test_a_sound_model_is_a_line_for_each_check(tmp_path: Path) -> None:
    result = check(tmp_path, SPEC, MODULE, "--json")
    assert result.exit_code == 0, result.output
    assert all(line["ok"] for line in json.loads(result.output))


@pytest.mark.parametrize(
    ("spec", "module", "line"),
    [
        (SPEC.replace('task = "binary"', 'task = "guess"'), MODULE, "FAIL spec: {file}: task: Invalid enum value 'guess'"),
        (SPEC.replace("name =", "name"), MODULE, "FAIL spec: {file}: not valid TOML"),
        (SPEC.replace("x:4", "y:4"), MODULE, "FAIL spec: {file}: monitor.segments: 'y:4' names no feature; expected one of x"),
        (SPEC.replace("model:Mine", "other:Mine"), MODULE, "FAIL module: {file}: module: found 'other:Mine', but there is no "),
        (SPEC.replace("model:Mine", "model:Yours"), MODULE, "FAIL module: {file}: module: model.py has no torch module 'Yours'; it has Mine"),
        (SPEC, None, "FAIL module: {file}: module: found 'model:Mine', but there is no "),
        (SPEC, MODULE.replace("import nn", "import nm"), "FAIL module: {folder}/model.py: cannot be imported: ImportError"),
        (SPEC, MODULE.replace('["dense"]', '["price"]'), "FAIL forward: KeyError: 'price'"),
    ],
)  # fmt: skip
def test_a_broken_one_is_one_line_with_its_mend_and_exit_code_1(
    tmp_path: Path, spec: str, module: str | None, line: str
) -> None:
    result = check(tmp_path, spec, module)
    assert result.exit_code == 1
    *passed, failed, mend = result.output.splitlines()
    expected = line.format(file=tmp_path / "mine" / "model.toml", folder=tmp_path / "mine")
    assert failed.startswith(expected), result.output
    assert mend.strip()
    assert all(each.startswith("ok ") for each in passed)
