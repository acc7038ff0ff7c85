"""The scheduled refit: the same model, fitted from scratch again and again on the newest labels, as a nightly job would."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cli.demo.references import Labels, Progress, available
from features.columns import Columns
from features.encode import encode
from features.state import fit as fit_state
from scenarios.scenario import Scenario
from schemas.spec import ModelSpec, load_spec
from training.fit import Examples, deterministic, fit
from training.tensors import scored
from triton_models.hosting import build_module


def scheduled_refit(
    models_dir: Path, scenario: Scenario, labels: Labels, seed: int, progress: Progress
) -> NDArray[np.bool_]:
    """Whether the scenario's model would have been right if it had been fitted again and again, at even distances, on as many of the
    newest labelled rows as trained version 1, with the spec's settings: shape (rows - first,)."""
    spec = load_spec(models_dir / scenario.name)
    columns, targets = _columns(scenario, spec), labels.astype(np.float64)
    stretches = list(available(scenario.first, len(labels), scenario.label_delay_rows))
    found: dict[int, NDArray[np.int64]] = {}
    # One process a core: the replay is over, and a fit keeps to one thread.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        answers = {
            pool.submit(
                _fitted, models_dir, spec,
                columns.take(np.arange(labelled - scenario.first, labelled)),
                targets[labelled - scenario.first : labelled],
                columns.take(np.arange(stretch.start, stretch.stop)), seed,
            ): stretch.start
            for stretch, labelled in stretches
        }  # fmt: skip
        for answer in as_completed(answers):
            found[answers[answer]] = answer.result()
            progress("scheduled refit", len(found) / len(stretches))
    answered = np.concatenate([found[stretch.start] for stretch, _ in stretches])
    right: NDArray[np.bool_] = np.equal(answered, labels[scenario.first :])
    return right


def _fitted(
    models_dir: Path, spec: ModelSpec, rows: Columns, targets: NDArray[np.float64], asked: Columns, seed: int
) -> NDArray[np.int64]:
    """The classes that a model fitted on `rows` gives to `asked`."""
    split = rows.rows - max(1, round(rows.rows * spec.train.validation))
    old, new = rows.take(np.arange(split)), rows.take(np.arange(split, rows.rows))
    state = fit_state(spec, old)
    with deterministic(seed):
        module = build_module(models_dir, spec)
        fit(
            module, spec, Examples(encode(spec, state, old), targets[:split]),
            Examples(encode(spec, state, new), targets[split:]),
            epochs=spec.train.full_epochs, patience=spec.train.patience, seed=seed,
        )  # fmt: skip
        scores = scored(module, spec, encode(spec, state, asked), asked.rows, temperature=1.0)
    answers: NDArray[np.int64] = scores.argmax(axis=1)
    return answers


def _columns(scenario: Scenario, spec: ModelSpec) -> Columns:
    rows = len(scenario)
    numbers = [np.asarray(scenario.columns[name], np.float32) for name in spec.numbers]
    texts = [scenario.columns[name][row] for row in range(rows) for name in spec.texts]
    return Columns(
        np.stack(numbers, axis=1) if numbers else np.zeros((rows, 0), np.float32),
        pa.array(texts, pa.string()),
    )
