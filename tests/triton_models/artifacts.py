"""A model folder and versions of it, made by hand: random weights are as good as trained ones here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors

from features.columns import Columns
from features.encode import encode
from features.state import fit
from runtime.artifacts import ArtifactStore
from schemas.arrow import encode_batch
from schemas.artifact import FEATURES, GOLDEN, GOLDEN_ROWS, REFERENCE, SPEC, WEIGHTS, Manifest, References
from schemas.spec import SPEC_FILE, load_spec
from triton_models import hosting

SPEC_TOML = """
name = "toy"
task = "binary"
classes = ["no", "yes"]
module = "model:Toy"
[features]
x = { type = "float" }
colour = { type = "category", values = ["red", "blue"], unknown = "other" }
text = { type = "text", ngrams = [1, 2], buckets = 50, missing = "empty" }
"""
MODULE = '''
"""A module that can be held: while a file `hold_loading` or `hold_forward` lies beside it, it waits there."""
import time
from pathlib import Path

from torch import nn

HERE = Path(__file__).parent


def wait_while(file):
    deadline = time.monotonic() + 30
    while file.exists() and time.monotonic() < deadline:
        time.sleep(0.005)


class Toy(nn.Module):
    def __init__(self, shape):
        super().__init__()
        with (HERE / "loads").open("a") as file:
            file.write(".")
        wait_while(HERE / "hold_loading")
        self.bag = nn.EmbeddingBag(shape.texts["text"], 4)
        self.dense = nn.Linear(shape.dense, 4)
        self.head = nn.Linear(4, shape.outputs)

    def forward(self, inputs):
        with (HERE / "forwards").open("a") as file:
            file.write(".")
        wait_while(HERE / "hold_forward")
        if (HERE / "fail_forward").exists():
            raise ValueError("broken\\nmodel")
        return self.head(self.bag(inputs["text_ids"], inputs["text_offsets"]) + self.dense(inputs["dense"]))
'''
ROWS = Columns(
    np.array([[0.5], [np.nan], [-3]], np.float32),
    pa.array(["red", "水车", "green", "", "blue", "mill"], pa.string()),
)


@dataclass(frozen=True)
class Version:
    """An artifact's name, input tensors and the scores that torch gives for them in this process."""

    artifact: str
    inputs: dict[str, NDArray[Any]]
    scores: NDArray[np.float32]


def write_toy(models_dir: Path) -> None:
    """The folder of the model `toy`."""
    folder = models_dir / "toy"
    folder.mkdir(parents=True)
    (folder / SPEC_FILE).write_text(SPEC_TOML)
    (folder / "model.py").write_text(MODULE)


def write_version(
    store: ArtifactStore,
    models_dir: Path,
    version: str,
    *,
    model: str = "toy",
    columns: Columns = ROWS,
    golden_error: float = 0.0,
) -> Version:
    """Write an artifact with random weights, seeded by `version`; `golden_error` is added to the recorded scores."""
    spec = load_spec(models_dir / model)
    torch.manual_seed(int(version.replace(".", "")))
    module = hosting.build_module(models_dir, spec).eval()
    state = fit(spec, columns)
    inputs = encode(spec, state, columns)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    scores = hosting.scores(module, tensors, spec, temperature=1.5).numpy()
    golden = {f"in.{name}": array for name, array in inputs.items()} | {
        "out.scores": scores + np.float32(golden_error)
    }
    manifest = Manifest(
        model=model, version=version, base="", module=spec.module,
        module_sha256=hosting.module_sha256(models_dir, spec), temperature=1.5, tolerance=1e-5, seed=0, rows=columns.rows,
        created_at_ms=0, label_from_ms=0, label_to_ms=0, files={},
    )  # fmt: skip
    files = {
        SPEC: (models_dir / model / SPEC_FILE).read_bytes(),
        WEIGHTS: save_tensors(module.state_dict()),
        FEATURES: save_arrays(state),
        GOLDEN: save_arrays(golden),
        GOLDEN_ROWS: encode_batch(pa.record_batch(list(columns.as_lists()), ["numbers", "texts"])),
        REFERENCE: msgspec.json.encode(References(rows=columns.rows, features={})),
    }
    return Version(store.write(manifest, files), inputs, scores)
