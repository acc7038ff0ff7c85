"""The layout of an artifact: everything one version is, in one immutable folder of the artifact store.

<store>/<model>/<major>.<update>-<hash12>/
    manifest.json           what is in here, with the sha256 of every file; its own sha256 names the folder
    model.toml              the spec it was trained with
    weights.safetensors     the torch module's state
    features.safetensors    the feature state: arrays by name (`features.state`)
    golden.safetensors      a batch of input tensors (`in.<name>`) and the scores recorded for them (`out.scores`)
    golden.arrow            the same rows before encoding (columns `numbers`, `texts`), to check the gateway's encoding too
    reference.json          histograms of the training rows that drift is measured against
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

MANIFEST: Final = "manifest.json"
SPEC: Final = "model.toml"
WEIGHTS: Final = "weights.safetensors"
FEATURES: Final = "features.safetensors"
GOLDEN: Final = "golden.safetensors"
GOLDEN_ROWS: Final = "golden.arrow"
REFERENCE: Final = "reference.json"
FILES: Final = (SPEC, WEIGHTS, FEATURES, GOLDEN, GOLDEN_ROWS, REFERENCE)

ARTIFACT: Final = re.compile(r"(?P<major>[1-9]\d*)\.(?P<update>0|[1-9]\d*)-[0-9a-f]{12}\Z")
VERSION: Final = re.compile(r"([1-9]\d*)\.(0|[1-9]\d*)\Z")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an artifact is."""

    model: str
    version: str
    base: str
    """Artifact it was trained from, "" for one from scratch."""
    module: str
    """`file:Class` in the model's folder."""
    module_sha256: str
    """Hash of the module's source: weights fit the code they were trained with."""
    temperature: float
    """Calibration: logits are divided by it."""
    tolerance: float
    """Largest absolute difference a golden inference may have from the recorded scores."""
    seed: int
    rows: int
    created_at_ms: int
    label_from_ms: int
    label_to_ms: int
    files: dict[str, str]
    """File name → sha256."""


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """One feature's histogram over the training rows."""

    kind: str
    """`edges`: counts of numbers between `edges` (len(edges) + 1 bins, and one last bin for NaN);
    `values`: counts per value, one last bin for others; `characters`: see `stats.histogram.text_counts`."""
    counts: list[int]
    edges: list[float] = []
    values: list[str] = []


class References(msgspec.Struct, frozen=True, kw_only=True):
    """What drift is measured against: per feature, and `score` for the predicted probability."""

    rows: int
    features: dict[str, Reference]


def parse_version(version: str) -> tuple[int, int]:
    """(major, update) of `major.update`.

    >>> parse_version("3.12")
    (3, 12)
    """
    match = VERSION.match(version)
    if match is None:
        raise ValueError(f"version: found {version!r}, expected <major>.<update> such as 1.0")
    return int(match[1]), int(match[2])
