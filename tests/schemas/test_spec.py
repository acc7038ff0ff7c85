"""A broken spec is one line that names the key, what was found and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import SpecError, UnknownModel
from schemas.spec import decode_spec, load_spec, load_specs

SOUND = """
name = "m"
task = "binary"
classes = ["down", "up"]
module = "model:M"
[features]
x = { type = "float", min = 0, max = 1 }
colour = { type = "category", values = ["red", "blue"] }
words = { type = "text" }
flag = { type = "bool" }
"""


def test_a_sound_spec_has_its_defaults_and_its_order() -> None:
    spec = decode_spec(SOUND, "model.toml")
    assert (spec.numbers, spec.texts, spec.outputs) == (("x", "flag"), ("colour", "words"), 2)
    assert spec.serve.max_batch_rows == 4096
    assert spec.rollout.approval == "automatic"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("task = ", "tusk = "), "Object contains unknown field `tusk`"),
        (('"binary"', '"guessing"'), "task: Invalid enum value 'guessing'"),
        (('"model:M"', '"model"'), "module: Expected `str` matching regex"),
        (('["down", "up"]', '["down"]'), "classes: found 1, a binary task expects 2"),
        (('["down", "up"]', '["up", "up"]'), "classes: expected no class twice"),
        (("max = 1", 'max = "1"'), "features[...].max: Expected `float | null`, got `str`"),
        (("max = 1", "max = -1"), "features.x: min 0.0 is not below max -1.0"),
        (("x = {", "X = {"), "features.X: expected a name of a-z"),
        (("x = {", "label = {"), "features.label: this name is reserved"),
        (('"float"', '"flot"'), "features[...].type: Invalid value 'flot'"),
        (("name =", "nam =="), "not valid TOML"),
        (
            ("[features]", '[monitor]\nsegments = ["y:4"]\n[features]'),
            "monitor.segments: 'y:4' names no feature",
        ),
        (
            ("[features]", '[monitor]\nsegments = ["x"]\n[features]'),
            "monitor.segments: 'x': expected 'x:<2 or more>'",
        ),
        (
            ("[features]", '[rollout]\nmetric = "squared_error"\n[features]'),
            "rollout.metric: 'squared_error' does not fit",
        ),
    ],
)
def test_a_broken_spec_is_one_line(change: tuple[str, str], line: str) -> None:
    with pytest.raises(SpecError) as caught:
        decode_spec(SOUND.replace(*change, 1), "folder/model.toml")
    assert str(caught.value).startswith("folder/model.toml: " + line)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_there_and_one_in_the_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="no model 'ghost'"):
        load_spec(tmp_path / "ghost")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.toml").write_text(SOUND)
    with pytest.raises(SpecError, match="found 'm', expected the folder's name 'other'"):
        load_specs(tmp_path)
