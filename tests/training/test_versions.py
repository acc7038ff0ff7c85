"""Full trainings and updates: they learn, they repeat exactly, and they are refused for a reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from features.encode import encode
from runtime.artifacts import Artifact, ArtifactStore
from schemas.artifact import FEATURES, REFERENCE, WEIGHTS
from schemas.errors import ArtifactError, UserError
from tests.training.toys import MODULE, SPEC, first_version, order, rows, write_model
from training.fit import Step
from training.full import train_full
from training.publish import Lineage, Trained
from training.rows import Rows
from training.snapshot import UpdateRows
from training.tensors import scored
from training.update import train_update
from triton_models.hosting import load

LINEAGE = Lineage(retrain_id="r")


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    write_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Version 1.0, trained once: the same for whoever trains it."""
    folder = tmp_path_factory.mktemp("first")
    write_model(folder / "models")
    return first_version(folder / "models", folder / "artifacts")


@pytest.fixture
def base(first: Artifact, tmp_path: Path) -> Artifact:
    """Version 1.0 in a store of the test's own."""
    shutil.copytree(first.folder.parent.parent, tmp_path / "artifacts")
    return ArtifactStore(tmp_path / "artifacts").open("toy", first.name)


def accuracy(artifact: Artifact, models_dir: Path, unseen: Rows) -> float:
    hosted = load(artifact, models_dir)
    tensors = encode(hosted.spec, artifact.features, unseen.columns)
    found = scored(hosted.module, hosted.spec, tensors, len(unseen), hosted.temperature)
    return float((found.argmax(1) == unseen.targets).mean())


def stored(trained: Trained, tmp_path: Path) -> Artifact:
    store = ArtifactStore(tmp_path / "artifacts")
    return store.open("toy", store.write(trained.manifest, trained.files))


def test_a_full_training_learns_what_can_be_learned(base: Artifact, models_dir: Path) -> None:
    assert accuracy(base, models_dir, rows(300, seed=9)) > 0.95


def test_a_full_training_reports_unseen_rows_and_baselines(models_dir: Path) -> None:
    trained = train_full(models_dir, order("initial", "1.0"), rows(400), LINEAGE)
    assert trained.problems == []
    assert trained.report["candidate"]["rows"] == 40
    assert trained.report["candidate"]["accuracy"] > trained.report["baselines"]["majority"]["accuracy"]
    assert set(trained.report["segments"]) <= {"x=-10..0", "x=0..10"}
    assert trained.manifest.rows == 360


def test_the_same_order_and_rows_give_the_same_bytes(models_dir: Path) -> None:
    first, again = (train_full(models_dir, order("initial", "1.0"), rows(200), LINEAGE) for _ in range(2))
    assert first.manifest == again.manifest
    assert first.files == again.files


def test_training_does_not_depend_on_the_callers_random_state(models_dir: Path) -> None:
    first = train_full(models_dir, order("initial", "1.0"), rows(200), LINEAGE)
    torch.manual_seed(12345)
    before = torch.random.get_rng_state()
    again = train_full(models_dir, order("initial", "1.0"), rows(200), LINEAGE)
    assert first.files[WEIGHTS] == again.files[WEIGHTS]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_seed_gives_another_version(models_dir: Path) -> None:
    first = train_full(models_dir, order("initial", "1.0"), rows(200), LINEAGE)
    other = train_full(models_dir, order("initial", "1.0", seed=8), rows(200), LINEAGE)
    assert first.files[WEIGHTS] != other.files[WEIGHTS]


def test_an_update_follows_a_change_and_repeats_exactly(
    base: Artifact, models_dir: Path, tmp_path: Path
) -> None:
    changed = UpdateRows(rows(400, seed=1, flipped=True, joined_from_ms=1000), rows(0))
    artifact = base
    for update in range(1, 6):
        step = order("update", f"1.{update}", artifact.name)
        trained, again = (train_update(models_dir, step, changed, artifact) for _ in range(2))
        assert trained.files == again.files
        assert trained.manifest == again.manifest
        artifact = stored(trained, tmp_path)
    unseen = rows(300, seed=5, flipped=True)
    assert accuracy(artifact, models_dir, unseen) > accuracy(base, models_dir, unseen) + 0.3


def test_an_update_keeps_feature_state_temperature_and_reference(
    base: Artifact, models_dir: Path, tmp_path: Path
) -> None:
    trained = train_update(
        models_dir,
        order("update", "1.1", base.name),
        UpdateRows(rows(60, seed=2, joined_from_ms=500), rows(60)),
        base,
    )
    artifact = stored(trained, tmp_path)
    assert artifact.manifest.temperature == base.manifest.temperature != 1.0
    for name in (FEATURES, REFERENCE):
        assert (artifact.folder / name).read_bytes() == (base.folder / name).read_bytes()
    assert artifact.manifest.base == base.name
    assert (artifact.manifest.label_from_ms, artifact.manifest.label_to_ms) == (500, 559)
    assert artifact.manifest.rows == 60 + 54
    assert (artifact.folder / WEIGHTS).read_bytes() != (base.folder / WEIGHTS).read_bytes()


def test_a_base_is_judged_on_rows_that_it_was_never_fitted_on(
    base: Artifact, models_dir: Path, tmp_path: Path
) -> None:
    first = stored(
        train_update(
            models_dir,
            order("update", "1.1", base.name),
            UpdateRows(rows(60, seed=2, joined_from_ms=500), rows(60)),
            base,
        ),
        tmp_path,
    )
    overlapping = UpdateRows(rows(60, seed=2, joined_from_ms=530), rows(60))
    second = train_update(models_dir, order("update", "1.2", first.name), overlapping, first)
    assert second.report["base_unseen"]["rows"] == 30
    assert second.report["live_unseen"]["log_loss"] == pytest.approx(0.7)


def test_an_artifact_answers_its_golden_batch_as_recorded(base: Artifact, models_dir: Path) -> None:
    assert load(base, models_dir).artifact == base.name
    assert base.golden_rows.num_rows == 64
    assert base.golden["out.scores"].shape == (64, 2)


def test_an_update_of_a_changed_spec_is_a_mistake(base: Artifact, models_dir: Path) -> None:
    write_model(models_dir, SPEC.replace("max = 10, missing", "max = 11, missing"))
    with pytest.raises(UserError, match=r"toy: features changed since 1.0-.*: expected a major"):
        train_update(models_dir, order("update", "1.1", base.name), UpdateRows(rows(60), rows(60)), base)


def test_an_update_without_labels_is_a_mistake(base: Artifact, models_dir: Path) -> None:
    with pytest.raises(UserError, match="no labels joined up to 5 ms"):
        train_update(
            models_dir,
            order("update", "1.1", base.name, labels_through_ms=5),
            UpdateRows(rows(0), rows(60)),
            base,
        )


def test_an_update_that_explodes_is_refused(base: Artifact, models_dir: Path) -> None:
    write_model(models_dir, SPEC.replace("lr = 0.02", 'name = "sgd", lr = 1e30'))
    trained = train_update(
        models_dir, order("update", "1.1", base.name), UpdateRows(rows(60), rows(60)), base
    )
    assert trained.problems == ["its scores are not all finite"]


def test_a_major_worse_than_what_was_answered_live_is_refused(base: Artifact, models_dir: Path) -> None:
    labelled = rows(600, joined_from_ms=1000)
    noise = np.random.default_rng(3).integers(0, 2, 600)
    labelled.labels["target"] = noise
    labelled.labels["answered"], labelled.labels["loss"] = noise, 0.1
    trained = train_full(models_dir, order("major", "2.0", base.name), labelled, LINEAGE, base)
    assert trained.report["base_source"] == "live answers"
    assert trained.report["base"]["accuracy"] == 1.0
    assert any("accuracy on 60 unseen rows: gain -" in problem for problem in trained.problems)


def test_a_major_from_a_file_is_compared_with_the_champion_itself(base: Artifact, models_dir: Path) -> None:
    trained = train_full(models_dir, order("initial", "2.0", base.name), rows(600, seed=4), LINEAGE, base)
    assert trained.report["base_source"] == "base evaluated now"
    assert trained.report["base"]["accuracy"] > 0.9
    assert trained.problems == []


def test_a_major_is_trained_though_its_base_belongs_to_code_that_has_changed(
    base: Artifact, models_dir: Path
) -> None:
    write_model(models_dir, SPEC, MODULE + "# changed\n")
    trained = train_full(models_dir, order("initial", "2.0", base.name), rows(600, seed=4), LINEAGE, base)
    assert (trained.problems, trained.report["base_source"]) == ([], "none")
    assert "trained with another module" in trained.report["base_error"]
    with pytest.raises(ArtifactError, match="trained with another module"):
        train_update(models_dir, order("update", "1.1", base.name), UpdateRows(rows(60), rows(60)), base)


def test_too_few_rows_are_a_mistake(models_dir: Path) -> None:
    with pytest.raises(UserError, match="found 19 labelled rows, expected at least 20"):
        train_full(models_dir, order("initial", "1.0"), rows(19), LINEAGE)


def test_early_stopping_keeps_the_best_epoch(models_dir: Path) -> None:
    write_model(models_dir, SPEC.replace("full_epochs = 8", "full_epochs = 60\npatience = 2"), MODULE)
    noisy = rows(300)
    noisy.labels["target"] = np.random.default_rng(0).integers(0, 2, 300)
    steps: list[Step] = []
    trained = train_full(models_dir, order("initial", "1.0"), noisy, LINEAGE, report=steps.append)
    losses = [line.val_loss for line in steps if line.val_loss is not None][1:]
    assert len(losses) < 60
    assert losses.index(min(losses)) == len(losses) - 3
    assert trained.report["curve"] == [
        msgspec.to_builtins(line) for line in steps if line.val_loss is not None
    ]


def test_a_regression_learns_on_its_own_scale(tmp_path: Path) -> None:
    spec = SPEC.replace('task = "binary"\nclasses = ["no", "yes"]', 'task = "regression"')
    write_model(
        tmp_path,
        spec.replace("full_epochs = 8", "full_epochs = 60\npatience = 60")
        + '\n[rollout]\nmetric = "squared_error"\n',
    )
    values = rows(500)
    values.labels["target"] = 100 * values.columns.numbers[:, 0]
    trained = train_full(tmp_path, order("initial", "1.0"), values, LINEAGE)
    assert (
        trained.report["candidate"]["squared_error"]
        < trained.report["baselines"]["majority"]["squared_error"]
    )
