"""The typed model spec: what `triton_models/<name>/model.toml` may say, with its defaults.

Every mistake is one line: file, key, what was found, what was expected.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from schemas.errors import SpecError, UnknownModel

SPEC_FILE: Final = "model.toml"
NAME: Final = re.compile(r"[a-z][a-z0-9_]*\Z")
RESERVED_FEATURES: Final = frozenset(
    {
        "features",
        "request_id",
        "model",
        "prediction_id",
        "version",
        "label",
        "score",
        "scores",
        "requested_at",
        "arm",
        "role",
    }
)

Positive: TypeAlias = Annotated[int, Meta(gt=0)]
NonNegative: TypeAlias = Annotated[int, Meta(ge=0)]
Fraction: TypeAlias = Annotated[float, Meta(ge=0, le=1)]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the spec: an unknown key is an error, not a silence."""


class FloatFeature(_Table, frozen=True, tag_field="type", tag="float"):
    """A number. Held as float32, missing as NaN until encoded; standardised by the training data's mean and deviation."""

    min: float | None = None
    max: float | None = None
    missing: Literal["reject", "mean"] = "reject"


class IntFeature(_Table, frozen=True, tag_field="type", tag="int"):
    """A whole number; encoded as a float feature is. Exact up to 2**24."""

    min: int | None = None
    max: int | None = None
    missing: Literal["reject", "mean"] = "reject"


class BoolFeature(_Table, frozen=True, tag_field="type", tag="bool"):
    """true or false; encoded as 1 or 0, missing as the mean."""

    missing: Literal["reject", "mean"] = "reject"


class CategoryFeature(_Table, frozen=True, tag_field="type", tag="category"):
    """One of `values`; one-hot encoded. `unknown = "other"` encodes anything else as all zeros."""

    values: Annotated[tuple[str, ...], Meta(min_length=1)]
    unknown: Literal["reject", "other"] = "reject"
    missing: Literal["reject", "other"] = "reject"


class TextFeature(_Table, frozen=True, tag_field="type", tag="text"):
    """A text; encoded as hashed character n-grams of `ngrams[0]` to `ngrams[1]` characters into `buckets` ids."""

    ngrams: tuple[Positive, Positive] = (1, 3)
    buckets: Positive = 1 << 17
    max_chars: Positive = 1000
    """Characters beyond are not encoded (they stay in the observation)."""
    missing: Literal["reject", "empty"] = "reject"


Feature: TypeAlias = FloatFeature | IntFeature | BoolFeature | CategoryFeature | TextFeature
Numeric: Final = (FloatFeature, IntFeature, BoolFeature)


class Serve(_Table, frozen=True):
    """How requests are served."""

    hosting: Literal["shared"] = "shared"
    """shared: one Triton model hosts all versions in one process, chosen by a request parameter."""
    max_batch_rows: Positive = 4096
    """Most rows of a micro-batch; fewer where rows are wide, so that it has at most half a million numbers."""
    latency_budget_ms: Positive = 200
    """How long a row may wait for company. Where many come, 4,096 within half of this: half of it for its micro-batch, half for its
    transaction. Where few come: a tenth of it for its micro-batch while another is under way, and for no transaction."""
    timeout_ms: Positive = 5000
    """An inference that takes longer counts as failed; the rows are retried."""
    max_request_bytes: Positive = 65_536
    partitions: Positive = 2
    """Partitions of this model's requests, predictions and feedback."""


class DeadLetters(_Table, frozen=True):
    """When a partition halts instead of dead-lettering on: so much at once is rather our fault than the producers'."""

    halt_after_consecutive: NonNegative = 500
    """Rejected rows in a row, at which a partition halts; 0: no limit."""
    halt_ratio: Fraction = 0.5
    """Share of rejected rows in the window, above which a partition halts; 1: no limit."""
    halt_window_rows: Positive = 2000
    """Newest rows of a partition that the share is taken of; fewer are not judged by it."""


class Feedback(_Table, frozen=True):
    """What is known of the labels."""

    matures_after_sec: Positive = 86_400
    """After this long an unlabelled row counts against coverage."""
    orphan_after_sec: Positive = 600
    """Feedback whose prediction is not found for this long, with the sink caught up, is an orphan."""


class DriftTests(_Table, frozen=True):
    """Which drift tests run."""

    inputs: Literal["psi", "none"] = "psi"
    loss: Literal["adwin", "none"] = "adwin"
    psi_threshold: Annotated[float, Meta(gt=0)] = 0.25
    adwin_delta: Annotated[float, Meta(gt=0, lt=1)] = 0.002
    min_rows: Positive = 500
    """Rows in a window before its inputs are compared with the training data's."""


class Monitor(_Table, frozen=True):
    """What is computed online."""

    window_sec: Positive = 10
    """Length of the tumbling windows of metrics and drift, in event time."""
    segments: tuple[str, ...] = ()
    """`feature:n` cuts a number with min and max into n equal ranges; `feature` takes a category's values."""
    drift: DriftTests = DriftTests()


class Optimizer(_Table, frozen=True):
    """The optimiser of a full training and of an update."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Meta(gt=0)] = 1e-3
    weight_decay: Annotated[float, Meta(ge=0)] = 1e-2
    epochs: Positive = 2
    """Epochs of one update."""


class Train(_Table, frozen=True):
    """How versions are made."""

    update_every_labels: NonNegative = 200
    """0: no updates."""
    recent_rows: Positive = 500
    replay_rows: NonNegative = 500
    batch_rows: Positive = 64
    label_smoothing: Annotated[float, Meta(ge=0, lt=0.5)] = 0.05
    optimizer: Optimizer = Optimizer()
    full_epochs: Positive = 20
    """Most epochs of a full training; early stopping usually ends it."""
    patience: Positive = 5
    validation: Annotated[float, Meta(gt=0, lt=0.5)] = 0.1
    """The newest part of the training rows, never fitted on, that early stopping and the gates look at."""
    major_rows: Positive = 20_000
    """Newest labelled rows a major is fitted on."""
    major_every_sec: NonNegative = 0
    """A major by schedule; 0: by evidence or by hand only."""
    major_cooldown_sec: NonNegative = 60
    """No second major by evidence within this long."""
    min_gain: float = -0.02
    """A candidate whose metric on unseen rows is worse than its base's by more than this is refused."""


class Rollout(_Table, frozen=True):
    """How a version earns live traffic."""

    metric: Literal["accuracy", "log_loss", "squared_error"] = "accuracy"
    max_loss: Annotated[float, Meta(ge=0)] = 0.01
    """A chain of updates worse than its major by more than this, beyond chance, is reverted."""
    confidence: Annotated[float, Meta(gt=0.5, lt=1)] = 0.95
    shadow_rows: Positive = 1000
    """Labelled shadow rows a major needs before it can be promoted."""
    shadow_max_rows: Positive = 20_000
    """A major that has not proven itself by then is refused."""
    approval: Literal["automatic", "manual"] = "automatic"
    baseline: str = ""
    """A version kept in shadow for good (such as "1.0"), against which the loop's gain is measured."""
    keep_updates: Positive = 20


class ModelSpec(_Table, frozen=True, dict=True):
    """One model: what comes in, what goes out, how it is served, watched, trained and rolled out."""

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*$")]
    task: Literal["binary", "multiclass", "regression"]
    module: Annotated[str, Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """`file:Class` beside the spec."""
    features: dict[str, Feature]
    """In tensor order."""
    classes: tuple[str, ...] = ()
    description: str = ""
    serve: Serve = Serve()
    dead_letters: DeadLetters = DeadLetters()
    feedback: Feedback = Feedback()
    monitor: Monitor = Monitor()
    train: Train = Train()
    rollout: Rollout = Rollout()

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """Names of the features kept in an observation's `numbers`, in order: float, int and bool."""
        return tuple(name for name, feature in self.features.items() if isinstance(feature, Numeric))

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Names of the features kept in an observation's `texts`, in order: category and text."""
        return tuple(name for name, feature in self.features.items() if not isinstance(feature, Numeric))

    @property
    def outputs(self) -> int:
        """Width of the model's scores: one per class, or 1 for a regression."""
        return len(self.classes) if self.task != "regression" else 1


def decode_spec(text: str, where: str) -> ModelSpec:
    """The spec in `text`; `where` names it in errors.

    Raises:
        SpecError: one line.
    """
    try:
        spec = msgspec.toml.decode(text, type=ModelSpec)
    except msgspec.ValidationError as error:
        raise SpecError(f"{where}: {_located(str(error))}") from None
    except msgspec.DecodeError as error:
        raise SpecError(f"{where}: not valid TOML: {error}") from None
    for problem in _problems(spec):
        raise SpecError(f"{where}: {problem}")
    return spec


def load_spec(folder: Path) -> ModelSpec:
    """The spec of the model folder `folder`.

    Raises:
        UnknownModel: there is no such folder or no spec in it.
        SpecError: the spec cannot be used.
    """
    path = folder / SPEC_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UnknownModel(f"no model {folder.name!r}: expected {path}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    spec = decode_spec(text, str(path))
    if spec.name != folder.name:
        raise SpecError(f"{path}: name: found {spec.name!r}, expected the folder's name {folder.name!r}")
    return spec


def load_specs(models_dir: Path) -> dict[str, ModelSpec]:
    """All specs under `models_dir`, by name, in order of name.

    Raises:
        SpecError: one of them cannot be used.
    """
    return {path.parent.name: load_spec(path.parent) for path in sorted(models_dir.glob(f"*/{SPEC_FILE}"))}


def _located(message: str) -> str:
    """msgspec's ``… - at `$.a.b` `` turned round into `a.b: …`."""
    text, _, path = message.partition(" - at `$")
    key = path.rstrip("`").lstrip(".")
    return f"{key}: {text}" if key else text


def _problems(spec: ModelSpec) -> list[str]:
    """What the types cannot say, each as one line; empty if the spec is sound."""
    found: list[str] = []
    if spec.task == "regression" and spec.classes:
        found.append("classes: a regression has none")
    if spec.task == "binary" and len(spec.classes) != 2:
        found.append(f"classes: found {len(spec.classes)}, a binary task expects 2")
    if spec.task == "multiclass" and len(spec.classes) < 3:
        found.append(f"classes: found {len(spec.classes)}, a multiclass task expects at least 3")
    if len(set(spec.classes)) != len(spec.classes):
        found.append("classes: expected no class twice")
    if not spec.features:
        found.append("features: expected at least one feature")
    for name, feature in spec.features.items():
        if not NAME.match(name):
            found.append(f"features.{name}: expected a name of a-z, 0-9 and _, starting with a letter")
        if name in RESERVED_FEATURES:
            found.append(f"features.{name}: this name is reserved, choose another")
        if isinstance(feature, FloatFeature | IntFeature) and (
            feature.min is not None and feature.max is not None and feature.min >= feature.max
        ):
            found.append(f"features.{name}: min {feature.min} is not below max {feature.max}")
        if isinstance(feature, TextFeature) and feature.ngrams[0] > feature.ngrams[1]:
            found.append(
                f"features.{name}.ngrams: expected [shortest, longest], found {list(feature.ngrams)}"
            )
    for segment in spec.monitor.segments:
        found.extend(_segment_problems(spec, segment))
    metric_fits = (spec.rollout.metric == "squared_error") == (spec.task == "regression")
    if not metric_fits:
        found.append(f"rollout.metric: {spec.rollout.metric!r} does not fit the task {spec.task!r}")
    return found


def _segment_problems(spec: ModelSpec, segment: str) -> list[str]:
    name, _, parts = segment.partition(":")
    feature = spec.features.get(name)
    if feature is None:
        return [f"monitor.segments: {segment!r} names no feature; expected one of {', '.join(spec.features)}"]
    if isinstance(feature, CategoryFeature | BoolFeature):
        return (
            [f"monitor.segments: {segment!r}: {name} is not a number, expected {name!r} alone"]
            if parts
            else []
        )
    if isinstance(feature, TextFeature):
        return [f"monitor.segments: {segment!r}: a text has no segments"]
    if not parts.isdigit() or int(parts) < 2 or feature.min is None or feature.max is None:
        return [
            f"monitor.segments: {segment!r}: expected '{name}:<2 or more>' and min and max on the feature"
        ]
    return []
