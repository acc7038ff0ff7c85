"""The models that benchmarks serve, as folders made from data: so many numbers and texts, and one small network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.spec import SPEC_FILE

HIDDEN: Final = 64
MODULE: Final = f'''"""A perceptron over the numbers, beside a bag of n-grams of each text."""

import torch
from torch import nn


class Subject(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.bags = nn.ModuleDict({{name: nn.EmbeddingBag(buckets, 8) for name, buckets in shape.texts.items()}})
        width = shape.dense + 8 * len(shape.texts)
        self.layers = nn.Sequential(
            nn.Linear(width, {HIDDEN}), nn.ReLU(), nn.Linear({HIDDEN}, {HIDDEN}), nn.ReLU(), nn.Linear({HIDDEN}, shape.outputs)
        )

    def forward(self, inputs):
        parts = [bag(inputs[f"{{name}}_ids"], inputs[f"{{name}}_offsets"]) for name, bag in self.bags.items()]
        return self.layers(torch.cat([inputs["dense"], *parts], dim=1) if "dense" in inputs else torch.cat(parts, dim=1))
'''


@dataclass(frozen=True)
class Subject:
    """A model by the width of its requests."""

    name: str
    what: str
    numbers: int = 0
    text_chars: int = 0

    def spec_toml(self) -> str:
        """Its spec. Numbers lie between 0 and 1; the label of a row is drift-tested as any model's would be."""
        numbers = [f'x{i} = {{ type = "float", min = 0, max = 1 }}' for i in range(self.numbers)]
        text = f'text = {{ type = "text", buckets = 4096, max_chars = {self.text_chars} }}'
        return "\n".join(
            [
                f'name = "{self.name}"',
                'task = "binary"',
                'classes = ["no", "yes"]',
                'module = "model:Subject"',
                "[features]",
                *numbers,
                *([text] if self.text_chars else []),
                "",
            ]
        )


SUBJECTS: Final = {
    subject.name: subject
    for subject in (
        Subject("floats_8", "8 floats", numbers=8),
        Subject("floats_20", "20 floats", numbers=20),
        Subject("floats_784", "784 floats, a picture of 28 by 28", numbers=784),
        Subject("text_4k", "a text of 4,096 characters", text_chars=4096),
    )
}


def write_models(models_dir: Path, names: list[str]) -> Path:
    """Write the folders of these subjects and return `models_dir`."""
    for name in names:
        folder = models_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SPEC_FILE).write_text(SUBJECTS[name].spec_toml())
        (folder / "model.py").write_text(MODULE)
    return models_dir
