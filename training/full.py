"""A version from scratch: the first one, and every major."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.encode import encode
from features.segments import segments
from features.state import fit as fit_state
from runtime.artifacts import Artifact
from schemas.errors import ArtifactError, UserError
from schemas.events import Evidence, Retrain
from schemas.spec import ModelSpec, load_spec
from schemas.tensors import DENSE
from stats.reference import references
from training import evaluate
from training.fit import Examples, Report, deterministic, fit, quiet, temperature
from training.publish import Lineage, Trained, artifact_files, manifest, spec_text
from training.rows import Rows
from training.tensors import scored
from triton_models.hosting import build_module, load

MIN_ROWS: Final = 20


def train_full(
    models_dir: Path,
    order: Retrain,
    rows: Rows,
    lineage: Lineage,
    base: Artifact | None = None,
    report: Report = quiet,
) -> Trained:
    """Train `order.model` from scratch on `rows`, oldest first. The newest share of them (`train.validation`) is never fitted:
    early stopping, the calibration and the gates look at it. `base` is the version to beat, None for none.

    The same arguments give the same bytes.

    Raises:
        UserError: too few rows, or a spec that cannot be used.
        ArtifactError: the base cannot be loaded.
    """
    spec = load_spec(models_dir / order.model)
    if len(rows) < MIN_ROWS:
        raise UserError(f"{spec.name}: found {len(rows)} labelled rows, expected at least {MIN_ROWS}")
    split = len(rows) - max(1, round(len(rows) * spec.train.validation))
    old, new = rows.take(np.arange(split)), rows.take(np.arange(split, len(rows)))
    state = fit_state(spec, old.columns)
    fitted = Examples(encode(spec, state, old.columns), old.targets)
    unseen = Examples(encode(spec, state, new.columns), new.targets)
    with deterministic(order.seed):
        module = build_module(models_dir, spec)
        curve = fit(
            module, spec, fitted, unseen,
            epochs=spec.train.full_epochs, patience=spec.train.patience, seed=order.seed, report=report,
        )  # fmt: skip
        calibration = temperature(module, spec, unseen)
        found = scored(module, spec, unseen.tensors, len(unseen), calibration)
        comparison, problems = compare(models_dir, spec, base, new, found)
        reference = references(spec, rows.columns.numbers, rows.columns.texts, found)
        files = artifact_files(
            spec, module, state, calibration, rows.columns, order.seed,
            text=spec_text(models_dir, spec.name), reference=msgspec.json.encode(reference), lineage=lineage,
        )  # fmt: skip
    details = {
        "baselines": _baselines(spec, fitted, unseen),
        "curve": msgspec.to_builtins(curve),
        "temperature": calibration,
        "snapshot": lineage.snapshot,
    }
    return Trained(
        manifest(models_dir, spec, order, rows, len(fitted), calibration),
        files,
        problems,
        comparison | details,
        rows.newest_prediction_id,
    )


def compare(
    models_dir: Path, spec: ModelSpec, base: Artifact | None, unseen: Rows, found: NDArray[np.float32]
) -> tuple[Evidence, list[str]]:
    """The candidate's scores `found` on the unseen rows against its base, as evidence and as problems.

    A base that learns all the time has been fitted on the newest rows by now: what it is worth on them is what was answered live
    before their labels were known. Rows of a file were never answered: there the base itself is asked, fitted on them or not.
    """
    if not np.isfinite(found).all():
        return {}, ["its scores are not all finite"]
    live = ~np.isnan(unseen.labels["loss"])
    if base is None:
        return _compared(spec, unseen, found, None, "none"), []
    if live.sum() >= evaluate.MIN_GATE_ROWS:
        chosen = np.flatnonzero(live)
        comparison = _compared(spec, unseen.take(chosen), found[chosen], None, "live answers")
    else:
        try:
            hosted = load(base, models_dir)
        except ArtifactError as error:
            # Its module was changed, say. Refusing its successor for that would leave the model without a way on.
            return _compared(spec, unseen, found, None, "none") | {"base_error": str(error)}, []
        tensors = encode(hosted.spec, base.features, unseen.columns)
        theirs = scored(hosted.module, hosted.spec, tensors, len(unseen), hosted.temperature)
        comparison = _compared(spec, unseen, found, theirs, "base evaluated now")
    problems = evaluate.major_problems(
        spec, comparison["candidate"], comparison["base"], comparison["segments"], comparison["base_segments"]
    )
    return comparison, problems


def _compared(
    spec: ModelSpec, rows: Rows, found: NDArray[np.float32], theirs: NDArray[np.float32] | None, source: str
) -> Evidence:
    """Metrics of candidate and base on the same rows, over all and by segment."""

    def base(positions: NDArray[np.int64]) -> evaluate.Metrics:
        if theirs is not None:
            return evaluate.metrics(spec, theirs[positions], rows.targets[positions])
        return evaluate.live_metrics(spec, rows.labels[positions])

    def candidate(positions: NDArray[np.int64]) -> evaluate.Metrics:
        return evaluate.metrics(spec, found[positions], rows.targets[positions])

    everything = np.arange(len(rows))
    named = segments(spec, rows.columns)
    return {
        "candidate": candidate(everything),
        "base": base(everything) if source != "none" else {},
        "base_source": source,
        "segments": evaluate.by_segment(named, candidate),
        "base_segments": evaluate.by_segment(named, base) if source != "none" else {},
    }


def _baselines(spec: ModelSpec, fitted: Examples, unseen: Examples) -> Evidence:
    found: Evidence = {"majority": evaluate.majority(spec, fitted.targets, unseen.targets)}
    if list(fitted.tensors) == [DENSE]:
        found["logistic_regression"] = evaluate.logistic_regression(
            spec, fitted.tensors[DENSE], fitted.targets, unseen.tensors[DENSE], unseen.targets
        )
    return found
