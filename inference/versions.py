"""Readiness: a version serves only after it returned its golden answer here, through this code and this server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features.columns import Columns
from features.encode import encode
from features.state import State
from inference.triton import InferenceFailed, Triton
from runtime.artifacts import Artifact, ArtifactStore
from schemas.errors import ArtifactError
from schemas.spec import ModelSpec
from schemas.tensors import SCORES

IN: Final = "in."
OUT: Final = f"out.{SCORES}"


class GoldenMismatch(ArtifactError):
    """The version does not compute here what it computed where it was made: it must not serve."""


@dataclass(frozen=True, eq=False)
class Version:
    """A version that can be asked: its feature state, and the golden batch that proves it."""

    artifact: str
    name: str
    """`major.update`."""
    spec: ModelSpec
    state: State
    golden_inputs: dict[str, NDArray[Any]]
    golden_scores: NDArray[np.float32]
    tolerance: float


def open_version(store: ArtifactStore, spec: ModelSpec, artifact: str) -> Version:
    """Open a version, check its hashes, and that this code encodes its golden rows to its golden tensors, bit for bit.

    Raises:
        ArtifactError: missing, altered, or made for other features.
        GoldenMismatch: the encoding differs.
    """
    opened = store.open(spec.name, artifact)
    made_for = opened.spec
    if (made_for.features, made_for.classes, made_for.task) != (spec.features, spec.classes, spec.task):
        raise ArtifactError(
            f"{spec.name}/{artifact}: was made for other features or classes than the model's spec has now"
        )
    version = _read(opened, spec)
    rows = opened.golden_rows
    columns = Columns.from_lists(rows.column("numbers"), rows.column("texts"), spec)
    encoded = encode(spec, version.state, columns)
    if encoded.keys() != version.golden_inputs.keys():
        raise GoldenMismatch(
            f"{spec.name}/{artifact}: golden tensors: expected {sorted(encoded)}, found {sorted(version.golden_inputs)}"
        )
    for name, tensor in encoded.items():
        golden = version.golden_inputs[name]
        if (
            tensor.dtype != golden.dtype
            or tensor.shape != golden.shape
            or tensor.tobytes() != golden.tobytes()
        ):
            raise GoldenMismatch(
                f"{spec.name}/{artifact}: encoding the golden rows does not give the golden tensor {name!r}"
            )
    return version


def _read(opened: Artifact, spec: ModelSpec) -> Version:
    golden = opened.golden
    if OUT not in golden:
        raise ArtifactError(f"{spec.name}/{opened.name}: the golden batch holds no scores")
    inputs = {name.removeprefix(IN): tensor for name, tensor in golden.items() if name.startswith(IN)}
    manifest = opened.manifest
    return Version(
        opened.name, manifest.version, spec, opened.features, inputs, golden[OUT], manifest.tolerance
    )


async def prove(triton: Triton, version: Version, unload: str = "") -> None:
    """Ask the server for the golden answer.

    Raises:
        Outage: it is away.
        GoldenMismatch: it failed, or answered something else.
    """
    golden = version.golden_scores
    where = f"{version.spec.name}/{version.artifact}"
    try:
        scores = await triton.infer(
            version.spec, version.artifact, version.golden_inputs, len(golden), unload
        )
    except InferenceFailed as error:
        raise GoldenMismatch(f"{where}: golden inference failed: {error}") from None
    difference = float(np.abs(scores - golden).max(initial=0.0))
    if not difference <= version.tolerance:
        raise GoldenMismatch(
            f"{where}: golden inference: scores differ by {difference:.3g}, expected at most {version.tolerance:.3g}"
        )
