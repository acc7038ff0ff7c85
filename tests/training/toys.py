"""Toy models and rows for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from features.columns import Columns
from runtime.artifacts import Artifact, ArtifactStore
from schemas.events import Retrain, RetrainKind
from schemas.spec import ModelSpec, load_spec
from training.full import train_full
from training.publish import Lineage
from training.rows import Rows, write_snapshot

SPEC = """
name = "toy"
task = "binary"
classes = ["no", "yes"]
module = "model:Toy"

[features]
x = { type = "float", min = -10, max = 10 }
y = { type = "float", min = -10, max = 10, missing = "mean" }
text = { type = "text", ngrams = [1, 2], buckets = 512 }

[monitor]
segments = ["x:2"]

[train]
recent_rows = 60
replay_rows = 60
full_epochs = 8
optimizer = { lr = 0.02, epochs = 2 }
"""
MODULE = """
import torch
from torch import nn

class Toy(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.bag = nn.EmbeddingBag(shape.texts["text"], 4, mode="mean")
        self.layers = nn.Sequential(nn.Linear(shape.dense + 4, 16), nn.ReLU(), nn.Linear(16, shape.outputs))

    def forward(self, inputs):
        bag = self.bag(inputs["text_ids"], inputs["text_offsets"])
        return self.layers(torch.cat([inputs["dense"], bag], dim=1))
"""


def write_model(models_dir: Path, spec: str = SPEC, module: str = MODULE) -> ModelSpec:
    """The toy model's folder."""
    folder = models_dir / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toml").write_text(spec)
    (folder / "model.py").write_text(module)
    return load_spec(folder)


def rows(count: int, seed: int = 0, flipped: bool = False, joined_from_ms: int = 0) -> Rows:
    """Separable rows: `yes` if x + y > 0, and the text says so too; `flipped` turns both round.

    With `joined_from_ms` they were asked for and labelled, a millisecond apart, and answered `no` beforehand.
    """
    random = np.random.default_rng(seed)
    numbers = random.normal(size=(count, 2)).astype(np.float32)
    truth = (numbers.sum(axis=1) > 0).astype(np.int64)
    texts = pa.array(["good" if yes else "bad" for yes in truth], pa.string())
    labelled = Rows.from_file(Columns(numbers, texts), (1 - truth if flipped else truth).astype(np.float64))
    if joined_from_ms:
        labels = labelled.labels
        labels["joined_ms"] = joined_from_ms + np.arange(count)
        labels["requested_ms"] = labels["joined_ms"] - 5
        labels["id_low"] = random.integers(1, 1 << 62, count)
        labels["answered"], labels["loss"] = 0, 0.7
    return labelled


def order(kind: RetrainKind, version: str, base: str = "", **changes: object) -> Retrain:
    """An order for the toy model."""
    values: dict[str, object] = {
        "event_id": f"order-{version}", "model": "toy", "at_ms": 1_700_000_000_000, "kind": kind, "reason": "test",
        "base_version": base.partition("-")[0], "base_artifact": base, "new_version": version, "dedupe_key": f"key-{version}",
        "labels_through_ms": 2_000_000_000_000, "seed": 7, "evidence": {},
    }  # fmt: skip
    return Retrain(**(values | changes))  # type: ignore[arg-type]


def first_version(models_dir: Path, artifacts_dir: Path, count: int = 400) -> Artifact:
    """Version 1.0 of the toy model, in the store, with the snapshot of its file."""
    file = rows(count)
    sha256 = write_snapshot(artifacts_dir, "toy", file)
    trained = train_full(
        models_dir,
        order("initial", "1.0"),
        file,
        Lineage(retrain_id="order-1.0", snapshot=sha256, file=sha256),
    )
    store = ArtifactStore(artifacts_dir)
    return store.open("toy", store.write(trained.manifest, trained.files))
