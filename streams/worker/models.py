"""What the worker knows of the models: their specs, and the references that drift is measured against."""

from __future__ import annotations

import logging

from runtime.artifacts import Artifact, ArtifactStore
from runtime.settings import Settings
from schemas.artifact import References, parse_version
from schemas.errors import ArtifactError, SpecError, UnknownModel
from schemas.spec import ModelSpec, load_spec

log = logging.getLogger(__name__)


class Models:
    """Specs and references by name, read when first asked for. Thread-safe enough: whoever reads twice reads the same files."""

    def __init__(self, settings: Settings) -> None:
        self._models_dir = settings.models_dir
        self._store = ArtifactStore(settings.artifacts_dir)
        self._specs: dict[str, ModelSpec | None] = {}
        self._references: dict[tuple[str, str], tuple[str, References] | None] = {}
        self._listed_ns: dict[str, int] = {}

    def spec(self, model: str) -> ModelSpec | None:
        """The model's spec; None (said once in the log) if there is none that can be used: its rows are passed over."""
        if model not in self._specs:
            try:
                self._specs[model] = load_spec(self._models_dir / model)
            except (UnknownModel, SpecError) as error:
                log.error("rows of model %r are not measured: %s", model, error)
                self._specs[model] = None
        return self._specs[model]

    def reference(self, model: str, version: str) -> tuple[str, References] | None:
        """(artifact, references) that inputs of `version` are compared with: those of its major, `n.0`, so that a chain of updates is
        held against one and the same distribution, or its own if the major is gone. None (said once) if neither can be read.
        """
        self._forget_if_changed(model)
        if (model, version) not in self._references:
            self._references[model, version] = self._read(model, version)
        return self._references[model, version]

    def _forget_if_changed(self, model: str) -> None:
        """A version may be tried again under the same number: look anew whenever the store's folder changed."""
        try:
            changed_ns = (self._store.root / model).stat().st_mtime_ns
        except FileNotFoundError:
            changed_ns = 0
        if self._listed_ns.get(model) != changed_ns:
            self._listed_ns[model] = changed_ns
            for key in [key for key in self._references if key[0] == model]:
                del self._references[key]

    def _read(self, model: str, version: str) -> tuple[str, References] | None:
        major, _ = parse_version(version)
        for wanted in (f"{major}.0", version):
            found: list[Artifact] = []
            for name in self._store.artifacts(model):
                if name.rpartition("-")[0] == wanted:
                    try:
                        found.append(self._store.open(model, name))
                    except ArtifactError as error:
                        log.warning("no reference from it: %s", error)
            if found:
                newest = max(found, key=lambda artifact: artifact.manifest.created_at_ms)
                return newest.name, newest.references
        log.warning("%s %s: no artifact to compare its inputs with", model, version)
        return None
