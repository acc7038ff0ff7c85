"""A small step from the champion: a few epochs on the newest labelled rows and on replayed history."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.encode import Tensors, encode
from runtime.artifacts import Artifact
from schemas.artifact import REFERENCE
from schemas.errors import UserError
from schemas.events import Retrain
from schemas.spec import ModelSpec, load_spec
from schemas.tensors import input_shape
from training import evaluate
from training.fit import Examples, Report, deterministic, fit, quiet
from training.publish import Trained, artifact_files, manifest, read_lineage, spec_text
from training.rows import Rows
from training.snapshot import UpdateRows
from training.tensors import scored, take
from triton_models.hosting import load


def train_update(
    models_dir: Path, order: Retrain, rows: UpdateRows, base: Artifact, report: Report = quiet
) -> Trained:
    """Train `base` on: its feature state, calibration and drift reference stay, its weights move.

    The newest rows are what an update is for, so none of them is held out. A share (`train.validation`) of the replayed ones is:
    it shows forgetting. The gain is known from elsewhere: the live arms answered the newest rows before their labels were known.

    The same arguments give the same bytes.

    Raises:
        UserError: no newly labelled rows, or a spec that no longer fits the base.
        ArtifactError: the base cannot be loaded.
    """
    spec = load_spec(models_dir / order.model)
    check_same_model(spec, base)
    if not len(rows.recent):
        raise UserError(
            f"{spec.name}: no labels joined up to {order.labels_through_ms} ms, expected some for an update"
        )
    hosted = load(base, models_dir)
    module, calibration = hosted.module, hosted.temperature
    held_out = round(len(rows.replay) * spec.train.validation)
    everything = Rows.concat([rows.recent, rows.replay])
    tensors, targets = encode(spec, base.features, everything.columns), everything.targets
    fitted = np.arange(len(everything) - held_out)
    unseen = np.arange(len(fitted), len(everything))
    before = scored(module, spec, tensors, len(everything), calibration)
    with deterministic(order.seed):
        curve = fit(
            module, spec, _examples(spec, tensors, targets, fitted), _examples(spec, tensors, targets, unseen),
            epochs=spec.train.optimizer.epochs, patience=None, seed=order.seed, report=report,
        )  # fmt: skip
        after = scored(module, spec, tensors, len(everything), calibration)
        lineage = msgspec.structs.replace(read_lineage(base), retrain_id=order.event_id)
        files = artifact_files(
            spec, module, base.features, calibration, everything.columns, order.seed,
            text=spec_text(models_dir, spec.name), reference=(base.folder / REFERENCE).read_bytes(), lineage=lineage,
        )  # fmt: skip
    recent = np.arange(len(rows.recent))
    # What was joined after the base's newest label, the base was never fitted on.
    fresh = recent[rows.recent.labels["joined_ms"] > base.manifest.label_to_ms]
    evidence = {
        "base_unseen": evaluate.metrics(spec, before[fresh], targets[fresh]),
        "live_unseen": evaluate.live_metrics(spec, rows.recent.labels[fresh]),
        "base_fitted": evaluate.metrics(spec, before[fitted], targets[fitted]),
        "candidate_fitted": evaluate.metrics(spec, after[fitted], targets[fitted]),
        "base_held_out": evaluate.metrics(spec, before[unseen], targets[unseen]),
        "candidate_held_out": evaluate.metrics(spec, after[unseen], targets[unseen]),
        "agreement": evaluate.agreed(after, before),
        "recent_rows": len(rows.recent),
        "replay_rows": len(rows.replay),
        "curve": msgspec.to_builtins(curve),
    }
    return Trained(
        manifest(models_dir, spec, order, everything, len(fitted), calibration),
        files,
        evaluate.update_problems(spec, after[fitted], before[fitted], targets[fitted]),
        evidence,
        everything.newest_prediction_id,
    )


def check_same_model(spec: ModelSpec, base: Artifact) -> None:
    """An update keeps encoding and outputs.

    Raises:
        UserError: the spec's features, classes, task or module are not those that the base was trained with.
    """
    theirs = base.spec
    for name in ("features", "classes", "task", "module"):
        if getattr(spec, name) != getattr(theirs, name):
            raise UserError(
                f"{spec.name}: {name} changed since {base.name} was trained: expected a major, not an update"
            )


def _examples(
    spec: ModelSpec, tensors: Tensors, targets: NDArray[np.float64], rows: NDArray[np.int64]
) -> Examples:
    return Examples(take(input_shape(spec), tensors, rows), targets[rows])
