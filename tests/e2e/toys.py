"""Three toy models whose truth a test decides: `automatic` and `manual`, named for how their majors are approved, and `updated`. They learn within a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from tidemill import Client

MODELS = ("automatic", "manual", "updated")
SPEC = """
name = "{name}"
task = "binary"
classes = ["no", "yes"]
module = "model:Toy"

[features]
x = {{ type = "float", min = -10, max = 10 }}
y = {{ type = "float", min = -10, max = 10 }}

[feedback]
orphan_after_sec = 1

[train]
update_every_labels = {update_every_labels}
recent_rows = 200
replay_rows = 0
full_epochs = 30
major_rows = 100                  # none of the file's, once so many are labelled
optimizer = {{ lr = 0.05, epochs = 10 }}

[rollout]
approval = "{approval}"
max_loss = 0.1                    # wide, so that little evidence is enough
shadow_rows = 60
"""
MODULE = """
from torch import nn

class Toy(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(shape.dense, 16), nn.ReLU(), nn.Linear(16, shape.outputs))

    def forward(self, inputs):
        return self.layers(inputs["dense"])
"""


def write_toys(models_dir: Path) -> None:
    """Their folders. Only `updated` is updated by labels: the others' majors are to be seen alone."""
    for name in MODELS:
        folder = models_dir / name
        folder.mkdir()
        approval = "automatic" if name == "automatic" else "manual"
        updates = 200 if name == "updated" else 0
        spec = SPEC.format(name=name, approval=approval, update_every_labels=updates)
        (folder / "model.toml").write_text(spec)
        (folder / "model.py").write_text(MODULE)


class World:
    """Rows with their truth: `yes` if x + y > 0, or the other way round in a world that is `flipped`."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def rows(self, count: int, flipped: bool = False) -> tuple[list[dict[str, float]], list[str]]:
        """Features and labels."""
        numbers = self._random.uniform(-1, 1, (count, 2))
        features = [{"x": float(x), "y": float(y)} for x, y in numbers]
        return features, ["yes" if (x + y > 0) != flipped else "no" for x, y in numbers]

    def file(self, path: Path, count: int, flipped: bool = False) -> Path:
        """A training file."""
        features, labels = self.rows(count, flipped)
        pyarrow.csv.write_csv(pa.Table.from_pylist(features).append_column("label", pa.array(labels)), path)
        return path

    def live(self, client: Client, model: str, count: int, flipped: bool = False) -> list[str]:
        """Ask for `count` rows, then tell what was true; the versions that answered."""
        features, labels = self.rows(count, flipped)
        with client.predictions(model) as reader:
            sent = [client.produce(model, row, key=str(place % 8)) for place, row in enumerate(features)]
            client.flush()
            answers = reader.wait_for([each.prediction_id for each in sent])
        for place, (answer, label) in enumerate(zip(answers, labels, strict=True)):
            client.feedback(model, prediction_id=answer.prediction_id, label=label, key=str(place % 8))
        client.flush()
        return [answer.version for answer in answers]
