"""Observations → histograms of inputs and scores in the bins of the version's reference; outcomes → the live arms' errors in order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.arrow import rows_where, rows_with, texts_in
from schemas.artifact import References, parse_version
from schemas.events import InputPartial, LossPartial
from schemas.spec import ModelSpec
from stats.histogram import Counts
from stats.reference import counts
from streams.worker.models import Models


class _Key(NamedTuple):
    model: str
    window_start_ms: int
    window_sec: int
    version: str
    """The reference's: `major.0` as a rule."""
    artifact: str


class Drift:
    """What one source partition added since the last save."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._rows: dict[_Key, int] = {}
        self._counts: dict[_Key, dict[str, Counts]] = {}
        self._losses: list[tuple[str, str, list[float], int]] = []
        self._errors = 0

    def observe(self, spec: ModelSpec, batch: pa.RecordBatch) -> None:
        """Count the live answers of a batch of observations of one model. Shadow copies have the same inputs: they say nothing new."""
        if spec.monitor.drift.inputs == "none":
            return
        batch = rows_with(batch, role="live", status="answered")
        for version in texts_in(batch["version"]):
            reference = self._models.reference(spec.name, version)
            if reference is not None:
                artifact, against = reference
                rows = _of_width(rows_with(batch, version=version), spec)
                self._count(spec, rows, artifact, against)

    def label(self, spec: ModelSpec, batch: pa.RecordBatch) -> None:
        """Take the errors of a batch of outcomes of one model: first labels of live predictions. A revision is no new event of the
        stream that the detector reads, so it counts in the metrics alone."""
        if spec.monitor.drift.loss == "none":
            return
        batch = rows_where(rows_with(batch, role="live"), pc.equal(batch["revision"], 0))
        for version in texts_in(batch["version"]):
            rows = rows_with(batch, version=version)
            if spec.task == "regression":
                errors = rows["loss"].to_numpy().astype(np.float64)
            else:
                errors = 1.0 - rows["correct"].to_numpy().astype(np.float64)
            newest_ms = pc.max(rows["labeled_at"].cast(pa.int64())).as_py()
            self._losses.append((spec.name, version, errors.tolist(), newest_ms))
            self._errors += len(errors)

    @property
    def size(self) -> int:
        """Roughly the histograms' worth of what is held: a hundred errors take as many bytes as one."""
        return len(self._rows) + len(self._losses) + self._errors // 100

    def drain(self, source: str, through_offset: int) -> list[InputPartial | LossPartial]:
        """What was added, and forget it."""
        rows, found, losses = self._rows, self._counts, self._losses
        self._rows, self._counts, self._losses, self._errors = {}, {}, [], 0
        partials: list[InputPartial | LossPartial] = [
            InputPartial(
                model=key.model,
                source=source,
                through_offset=through_offset,
                window_start_ms=key.window_start_ms,
                window_sec=key.window_sec,
                version=key.version,
                artifact=key.artifact,
                rows=rows[key],
                counts={subject: of.tolist() for subject, of in found[key].items()},
            )
            for key in rows
        ]
        partials += [
            LossPartial(
                model=model,
                source=source,
                through_offset=through_offset,
                version=version,
                errors=errors,
                newest_ms=newest_ms,
            )
            for model, version, errors, newest_ms in losses
        ]
        return partials

    def _count(self, spec: ModelSpec, batch: pa.RecordBatch, artifact: str, against: References) -> None:
        window_ms = spec.monitor.window_sec * 1000
        starts = batch["requested_at"].cast(pa.int64()).to_numpy() // window_ms * window_ms
        major, update = parse_version(artifact.rpartition("-")[0])
        for start in np.unique(starts).tolist():
            rows = rows_where(batch, pa.array(starts == start))
            key = _Key(spec.name, start, spec.monitor.window_sec, f"{major}.{update}", artifact)
            found = counts(
                spec,
                against,
                _matrix(rows["numbers"], len(spec.numbers)),
                rows["texts"].flatten(),
                _matrix(rows["scores"], spec.outputs),
            )
            self._rows[key] = self._rows.get(key, 0) + len(rows)
            held = self._counts.setdefault(key, {})
            for subject, of in found.items():
                held[subject] = held[subject] + of if subject in held else of


def _of_width(batch: pa.RecordBatch, spec: ModelSpec) -> pa.RecordBatch:
    """Rows that have this spec's features: an observation of an earlier spec may have fewer or more, and is not comparable."""
    fits = pc.and_(
        pc.equal(pc.list_value_length(batch["numbers"]), len(spec.numbers)),
        pc.and_(
            pc.equal(pc.list_value_length(batch["texts"]), len(spec.texts)),
            pc.equal(pc.list_value_length(batch["scores"]), spec.outputs),
        ),
    )
    return rows_where(batch, fits)


def _matrix(lists: pa.ListArray, width: int) -> NDArray[np.float32]:
    """An Arrow column of lists of `width` floats as (rows, width)."""
    return np.asarray(lists.flatten().to_numpy(), dtype=np.float32).reshape(len(lists), width)
