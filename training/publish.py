"""From a fitted module to an artifact's bytes: the same order and rows give the same bytes, so the same name."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

from features.columns import Columns
from features.encode import encode
from features.state import State
from runtime.artifacts import Artifact
from schemas.arrow import encode_batch
from schemas.artifact import FEATURES, GOLDEN, GOLDEN_ROWS, REFERENCE, SPEC, WEIGHTS, Manifest
from schemas.errors import ArtifactError
from schemas.events import Evidence, Retrain
from schemas.spec import SPEC_FILE, ModelSpec
from schemas.tensors import SCORES
from training.rows import Rows
from triton_models.hosting import module_sha256, scores

GOLDEN_MAX_ROWS: Final = 64
TOLERANCE: Final = 1e-4
"""float32 sums in another order, on another processor, stay well below."""
LINEAGE: Final = "training.json"


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """What an artifact was made of, beside its manifest."""

    retrain_id: str
    snapshot: str = ""
    """sha256 of the rows that its major was fitted on (`training.rows.read_snapshot`)."""
    file: str = ""
    """sha256 of the snapshot of the file that started the model: older history than any request, which updates replay too."""


class Trained(NamedTuple):
    """What came out of a training: an artifact that is not written yet, and what is known of it."""

    manifest: Manifest
    files: dict[str, bytes]
    problems: list[str]
    """Why it is refused; empty if it passes."""
    report: Evidence
    newest_prediction_id: str


def read_lineage(artifact: Artifact) -> Lineage:
    """The lineage in an artifact.

    Raises:
        ArtifactError: it has none.
    """
    try:
        return msgspec.json.decode((artifact.folder / LINEAGE).read_bytes(), type=Lineage)
    except (FileNotFoundError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{artifact.manifest.model}/{artifact.name}/{LINEAGE}: {error}") from None


def spec_text(models_dir: Path, model: str) -> bytes:
    """The spec as it is written."""
    return (models_dir / model / SPEC_FILE).read_bytes()


def manifest(
    models_dir: Path, spec: ModelSpec, order: Retrain, rows: Rows, fitted_rows: int, temperature: float
) -> Manifest:
    """The manifest of what `order` made of `rows` (its files' hashes are filled in by the store)."""
    joined_ms = rows.labels["joined_ms"]
    labelled = joined_ms[joined_ms > 0]
    return Manifest(
        model=spec.name,
        version=order.new_version,
        base=order.base_artifact,
        module=spec.module,
        module_sha256=module_sha256(models_dir, spec),
        temperature=temperature,
        tolerance=TOLERANCE,
        seed=order.seed,
        rows=fitted_rows,
        created_at_ms=order.at_ms,
        label_from_ms=int(labelled.min()) if len(labelled) else 0,
        label_to_ms=int(labelled.max()) if len(labelled) else 0,
        files={},
    )


def artifact_files(
    spec: ModelSpec,
    module: nn.Module,
    state: State,
    temperature: float,
    columns: Columns,
    seed: int,
    *,
    text: bytes,
    reference: bytes,
    lineage: Lineage,
) -> dict[str, bytes]:
    """The bytes of every file of the artifact. The golden batch is drawn from `columns` by `seed`."""
    count = min(GOLDEN_MAX_ROWS, columns.rows)
    golden = columns.take(np.sort(np.random.default_rng(seed).choice(columns.rows, count, replace=False)))
    inputs = encode(spec, state, golden)
    found = scores(
        module.eval(), {name: torch.from_numpy(array) for name, array in inputs.items()}, spec, temperature
    )
    tensors = {f"in.{name}": np.ascontiguousarray(array) for name, array in inputs.items()}
    numbers, texts = golden.as_lists()
    weights = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    return {
        SPEC: text,
        WEIGHTS: safetensors.torch.save(weights),
        FEATURES: safetensors.numpy.save(state),
        GOLDEN: safetensors.numpy.save(tensors | {f"out.{SCORES}": found.numpy()}),
        GOLDEN_ROWS: encode_batch(pa.RecordBatch.from_arrays([numbers, texts], names=["numbers", "texts"])),
        REFERENCE: reference,
        LINEAGE: msgspec.json.encode(lineage),
    }
