"""From a spec or an artifact to a torch module that answers: the same code in Triton and in training.

A model's module is `class X(nn.Module)` with `__init__(self, shape: schemas.tensors.InputShape)` and
`forward(inputs: dict[str, Tensor]) -> logits [rows, outputs]`, in a file beside the spec.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from runtime.artifacts import Artifact
from schemas.errors import ArtifactError, SpecError, TidemillError
from schemas.spec import SPEC_FILE, ModelSpec
from schemas.tensors import DENSE, SCORES, InputShape, input_shape, input_tensors


class InputError(TidemillError):
    """Input tensors that do not have the shapes or values of `schemas.tensors`."""


def module_path(models_dir: Path, spec: ModelSpec) -> Path:
    """The file that `spec.module` names."""
    file = spec.module.partition(":")[0]
    return models_dir / spec.name / f"{file.replace('.', '/')}.py"


def module_sha256(models_dir: Path, spec: ModelSpec) -> str:
    """Hash of the module's source, for the manifest: weights fit the code they were trained with.

    Raises:
        SpecError: there is no such file.
    """
    return hashlib.sha256(_source(models_dir, spec)).hexdigest()


def build_module(models_dir: Path, spec: ModelSpec) -> nn.Module:
    """A new module of `spec`, its weights drawn from torch's generator.

    Raises:
        SpecError: one line: the file or the class is not there, or the model's own code fails.
    """
    path = module_path(models_dir, spec)
    kind = _module_class(path, _source(models_dir, spec), spec)
    try:
        module: nn.Module = kind(input_shape(spec))
    except Exception as error:  # the model author's code may raise anything
        raise SpecError(f"{path}: {kind.__name__}(shape) failed: {_one_line(error)}") from error
    return module


def scores(module: nn.Module, inputs: dict[str, Tensor], spec: ModelSpec, temperature: float) -> Tensor:
    """float32 [rows, outputs]: a probability per class from the logits divided by `temperature`, or a regression's values.

    The module has to be in evaluation mode. No gradient is kept.
    """
    with torch.inference_mode():
        logits: Tensor = module(inputs).float()
        return logits if spec.task == "regression" else torch.softmax(logits / temperature, dim=1)


@dataclass(frozen=True)
class Hosted:
    """A version in memory. Whoever holds one knows that it has answered its golden batch as recorded."""

    artifact: str
    spec: ModelSpec
    shape: InputShape
    module: nn.Module
    temperature: float

    def scores(self, inputs: dict[str, Tensor]) -> Tensor:
        """float32 [rows, outputs] for the tensors of `schemas.tensors`. May be called from several threads.

        Raises:
            InputError: the tensors are not what the spec declares.
        """
        check_inputs(self.shape, inputs)
        return scores(self.module, inputs, self.spec, self.temperature)


def load(artifact: Artifact, models_dir: Path) -> Hosted:
    """The version in `artifact`, after its golden batch.

    Raises:
        ArtifactError: its module has changed since, its weights do not fit, or it does not answer its golden batch as recorded.
    """
    manifest = artifact.manifest
    where = f"{manifest.model}/{artifact.name}"
    try:
        spec = artifact.spec
        found = module_sha256(models_dir, spec)
        if found != manifest.module_sha256:
            raise ArtifactError(
                f"{where}: trained with another module: {module_path(models_dir, spec)} has sha256 {found[:12]}…, "
                f"expected {manifest.module_sha256[:12]}…"
            )
        module = build_module(models_dir, spec)
        module.load_state_dict(load_file(artifact.weights_path))
    except SpecError as error:
        raise ArtifactError(f"{where}: {error}") from None
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(f"{where}: its weights do not fit {spec.module}: {_one_line(error)}") from None
    hosted = Hosted(artifact.name, spec, input_shape(spec), module.eval(), manifest.temperature)
    _check_golden(hosted, artifact, where)
    return hosted


def check_inputs(shape: InputShape, inputs: dict[str, Tensor]) -> None:
    """Check names, shapes, and that offsets and ids point where they may.

    Raises:
        InputError: one line: the tensor, what was found, what was expected.
    """
    rows = {}
    if shape.dense:
        dense = _tensor(inputs, DENSE, torch.float32, 2)
        if dense.shape[1] != shape.dense:
            raise InputError(f"{DENSE}: found {list(dense.shape)}, expected [rows, {shape.dense}]")
        rows[DENSE] = len(dense)
    for name, buckets in shape.texts.items():
        ids = _tensor(inputs, f"{name}_ids", torch.int32, 1)
        offsets = _tensor(inputs, f"{name}_offsets", torch.int32, 1)
        ends = torch.cat([offsets, offsets.new_tensor([len(ids)])])
        if int(ends[0]) != 0 or bool((ends[1:] < ends[:-1]).any()):
            raise InputError(
                f"{name}_offsets: expected to begin with 0 and rise to at most {len(ids)}, the number of ids"
            )
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= buckets):
            raise InputError(
                f"{name}_ids: found {int(ids.min())} … {int(ids.max())}, expected 0 … {buckets - 1}"
            )
        rows[f"{name}_offsets"] = len(offsets)
    if len(set(rows.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise InputError(f"rows differ between tensors: {found}")


def _tensor(inputs: dict[str, Tensor], name: str, dtype: torch.dtype, dimensions: int) -> Tensor:
    tensor = inputs.get(name)
    if tensor is None:
        raise InputError(f"{name}: missing; found {', '.join(inputs) or 'no tensor'}")
    if tensor.dtype != dtype or tensor.dim() != dimensions:
        raise InputError(
            f"{name}: found {tensor.dtype} {list(tensor.shape)}, expected {dtype} with {dimensions} dimensions"
        )
    return tensor


def _check_golden(hosted: Hosted, artifact: Artifact, where: str) -> None:
    golden = {name: torch.from_numpy(array) for name, array in artifact.golden.items()}
    inputs = {name: golden.get(f"in.{name}") for name, _, _ in input_tensors(hosted.spec)}
    recorded = golden.get(f"out.{SCORES}")
    try:
        found = hosted.scores({name: tensor for name, tensor in inputs.items() if tensor is not None})
    except Exception as error:  # the model author's code may raise anything
        raise ArtifactError(f"{where}: golden batch: {_one_line(error)}") from error
    if recorded is None or recorded.shape != found.shape:
        shape = None if recorded is None else list(recorded.shape)
        raise ArtifactError(f"{where}: golden batch: recorded scores {shape}, expected {list(found.shape)}")
    difference = float((found - recorded).abs().max()) if found.numel() else 0.0
    # Written so that NaN fails.
    if not difference <= artifact.manifest.tolerance:
        raise ArtifactError(
            f"{where}: golden batch: scores differ from the recorded ones by {difference:.3g}, "
            f"tolerance {artifact.manifest.tolerance:.3g}"
        )


def _source(models_dir: Path, spec: ModelSpec) -> bytes:
    path = module_path(models_dir, spec)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        where = models_dir / spec.name / SPEC_FILE
        raise SpecError(f"{where}: module: found {spec.module!r}, but there is no {path}") from None


def _module_class(path: Path, source: bytes, spec: ModelSpec) -> type[nn.Module]:
    """The class that the spec names, from exactly the bytes that were hashed."""
    # Every model calls its file `model`: the name with path and hash keeps them apart, and a changed file from its old self.
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + source).hexdigest()[:16]
    name = f"_tidemill_{spec.name}_{digest}"
    module = sys.modules.get(name)
    if module is None:
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            exec(compile(source, path, "exec"), module.__dict__)
        except Exception as error:  # the model author's code may raise anything
            del sys.modules[name]
            raise SpecError(f"{path}: cannot be imported: {_one_line(error)}") from error
    wanted = spec.module.partition(":")[2]
    kind = getattr(module, wanted, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        here = [
            key for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == name
        ]  # fmt: skip
        raise SpecError(
            f"{path.parent / SPEC_FILE}: module: {path.name} has no torch module {wanted!r}; it has {', '.join(here) or 'none'}"
        )
    return kind


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
