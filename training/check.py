"""Offline checks of a model folder: what would otherwise only show when the model is trained and served."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from features.columns import Columns
from features.encode import Tensors, encode
from features.state import fit
from schemas.errors import UserError
from schemas.spec import BoolFeature, CategoryFeature, Feature, IntFeature, ModelSpec, TextFeature, load_spec
from schemas.tensors import InputShape, input_shape, input_tensors
from training.tensors import batch
from triton_models.hosting import build_module, scores

ROWS: Final = 64
LONGEST_TEXT: Final = 200
MISSING_SHARE: Final = 0.1
ALPHABET: Final = "aeinorst AEIN.,!?0123 äéß你好不是这水车🙂"
TOLERANCE: Final = 1e-5
_DTYPES: Final = {"FP32": np.dtype(np.float32), "INT32": np.dtype(np.int32)}


class CheckResult(msgspec.Struct, frozen=True):
    """One check of a model."""

    name: str
    ok: bool
    detail: str
    """One line: what was seen."""
    mend: str = ""
    """What to do about it, "" if it is fine."""


def check(models_dir: Path, name: str) -> list[CheckResult]:
    """Check the model in `models_dir / name`, in order; what would rest on a failed check is not run.

    Every row is drawn from the spec itself, with a fixed seed: numbers in their ranges, categories, texts, missing values where
    the spec allows them.
    """
    subject = _Subject(models_dir, name)
    results = []
    for title, run, mend in _CHECKS:
        try:
            results.append(CheckResult(title, True, run(subject)))
        except (_Failed, UserError) as error:
            results.append(CheckResult(title, False, str(error), mend))
        except Exception as error:  # noqa: BLE001  the model author's code may raise anything; the line says what
            line = f"{type(error).__name__}: {' '.join(str(error).split())}"
            results.append(CheckResult(title, False, line, mend))
        if not results[-1].ok:
            break
    return results


def synthetic_rows(spec: ModelSpec, rows: int, seed: int) -> Columns:
    """Random rows that the spec allows."""
    random = np.random.default_rng(seed)
    numbers = np.empty((rows, len(spec.numbers)), np.float32)
    for index, name in enumerate(spec.numbers):
        numbers[:, index] = _numbers(random, spec.features[name], rows)
    texts = [_texts(random, spec.features[name], rows) for name in spec.texts]
    flat = [text for row in zip(*texts, strict=True) for text in row]
    return Columns(numbers, pa.array(flat, pa.string()))


class _Failed(Exception):
    """A check has not passed; the message is its one line."""


class _Subject:
    """The model under check; each part is made when the first check asks for it."""

    def __init__(self, models_dir: Path, name: str) -> None:
        self.models_dir = models_dir
        self.name = name

    @cached_property
    def spec(self) -> ModelSpec:
        return load_spec(self.models_dir / self.name)

    @cached_property
    def shape(self) -> InputShape:
        return input_shape(self.spec)

    @cached_property
    def module(self) -> nn.Module:
        return build_module(self.models_dir, self.spec).eval()

    @cached_property
    def tensors(self) -> Tensors:
        columns = synthetic_rows(self.spec, ROWS, seed=0)
        return encode(self.spec, fit(self.spec, columns), columns)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return batch(self.shape, self.tensors, np.array(rows, np.int64))

    def scores(self, rows: Sequence[int]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = scores(self.module, self.batch(rows), self.spec, temperature=1.0).numpy()
        return found


def _spec(subject: _Subject) -> str:
    spec = subject.spec
    return f"{len(spec.features)} features, {spec.task}, {spec.outputs} outputs"


def _module(subject: _Subject) -> str:
    parameters = sum(parameter.numel() for parameter in subject.module.parameters())
    size_bytes = sum(tensor.nbytes for tensor in subject.module.state_dict().values())
    return f"{subject.spec.module}: {parameters:,} parameters, {size_bytes / 1e6:.2f} MB a version"


def _encoding(subject: _Subject) -> str:
    """The tensors are those that the spec declares to Triton."""
    for name, datatype, shape in input_tensors(subject.spec):
        found = subject.tensors[name]
        fits = found.ndim == len(shape) and all(
            want in (-1, have) for want, have in zip(shape, found.shape, strict=True)
        )
        if not fits or found.dtype != _DTYPES[datatype] or not np.isfinite(found).all():
            raise _Failed(
                f"{name}: found {found.dtype} {list(found.shape)}, expected {datatype} {list(shape)}, all finite"
            )
    described = ", ".join(f"{name} {list(array.shape)}" for name, array in subject.tensors.items())
    return f"{ROWS} synthetic rows: {described}"


def _forward(subject: _Subject) -> str:
    """Logits have the declared shape and are finite."""
    expected = [ROWS, subject.spec.outputs]
    with torch.inference_mode():
        logits = subject.module(subject.batch(range(ROWS)))
    if not isinstance(logits, Tensor) or list(logits.shape) != expected:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise _Failed(f"found {found}, expected {expected}")
    if not bool(torch.isfinite(logits).all()):
        raise _Failed("logits that are NaN or infinite")
    return f"finite logits {expected}"


def _independence(subject: _Subject) -> str:
    """A row's scores do not depend on the rows that share its micro-batch."""
    alone = np.concatenate([subject.scores([row]) for row in range(ROWS)])
    difference = float(np.abs(alone - subject.scores(range(ROWS))).max())
    if not difference <= TOLERANCE:
        raise _Failed(f"a row's scores differ by {difference:.3g} between alone and in a batch of {ROWS}")
    return f"alone and in a batch of {ROWS} within {TOLERANCE:g}"


def _gradients(subject: _Subject) -> str:
    """Every trainable parameter hears from the logits."""
    module = build_module(subject.models_dir, subject.spec).train()
    module(subject.batch(range(ROWS))).square().sum().backward()
    deaf = [name for name, value in module.named_parameters() if value.requires_grad and value.grad is None]
    if deaf:
        raise _Failed(f"none reaches {', '.join(deaf)}")
    return "reach every trainable parameter"


def _golden(subject: _Subject) -> str:
    """Weights stored as safetensors make a new module of the class answer the same batch the same way."""
    recorded = subject.scores(range(ROWS))
    stored = safetensors.torch.save(subject.module.state_dict())
    restored = build_module(subject.models_dir, subject.spec).eval()
    restored.load_state_dict(safetensors.torch.load(stored))
    found = scores(restored, subject.batch(range(ROWS)), subject.spec, temperature=1.0).numpy()
    difference = float(np.abs(found - recorded).max())
    if not difference <= TOLERANCE:
        raise _Failed(f"scores differ by {difference:.3g} after the weights were stored and read back")
    return "the same scores from the stored weights in a new module"


_CHECKS: Final = (
    ("spec", _spec, "mend what the line names in model.toml; docs/models.md has every key"),
    ("module", _module, "`module` names file:Class beside model.toml, an nn.Module made with one schemas.tensors.InputShape"),
    ("encoding", _encoding, "a defect of features/encode.py and not of the model: please report it"),
    ("forward", _forward, "forward(inputs) takes the tensors above by name and returns float logits [rows, outputs]"),
    ("independent rows", _independence, "in evaluation mode no layer may look across rows, drop a dimension of 1, or draw at random"),
    ("gradients", _gradients, "use every parameter in forward, detach none, or give it requires_grad=False"),
    ("golden batch", _golden, "whatever the answer rests on has to be a parameter or a buffer, none sharing memory with another"),
)  # fmt: skip


def _numbers(random: np.random.Generator, feature: Feature, rows: int) -> NDArray[np.float32]:
    if isinstance(feature, BoolFeature):
        drawn = random.integers(0, 2, rows).astype(np.float32)
    elif isinstance(feature, TextFeature | CategoryFeature):
        raise TypeError(f"{type(feature).__name__} is no number")
    else:
        low = 0.0 if feature.min is None else float(feature.min)
        high = low + 1000.0 if feature.max is None else float(feature.max)
        low = high - 1000.0 if feature.min is None else low
        drawn = random.uniform(low, high, rows).astype(np.float32)
        if isinstance(feature, IntFeature):
            drawn = np.round(drawn)
    if feature.missing == "mean":
        drawn[random.random(rows) < MISSING_SHARE] = np.nan
    return drawn


def _texts(random: np.random.Generator, feature: Feature, rows: int) -> list[str]:
    if isinstance(feature, CategoryFeature):
        values = [*feature.values]
        values += ["none of them"] if feature.unknown == "other" else []
        drawn = [values[place] for place in random.integers(0, len(values), rows)]
        missing = feature.missing == "other"
    elif isinstance(feature, TextFeature):
        lengths = random.integers(1, LONGEST_TEXT + 1, rows)
        drawn = ["".join(random.choice(list(ALPHABET), length)) for length in lengths]
        missing = feature.missing == "empty"
    else:
        raise TypeError(f"{type(feature).__name__} is no text")
    empty = random.random(rows) < (MISSING_SHARE if missing else 0)
    return ["" if gone else text for text, gone in zip(drawn, empty, strict=True)]
