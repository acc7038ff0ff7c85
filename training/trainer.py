"""One order: from the event to a candidate, its artifact in the store."""

from __future__ import annotations

import logging
import re
import time
from typing import Final

import numpy as np
from clickhouse_connect.driver.client import Client
from confluent_kafka import KafkaException

from runtime.artifacts import Artifact, ArtifactStore
from runtime.clock import Clock, now_ms
from runtime.settings import Settings
from schemas.errors import ArtifactError, Outage, UnknownModel, UserError
from schemas.events import Candidate, Retrain
from schemas.identity import name_id
from schemas.spec import NAME, ModelSpec, load_spec
from training.fit import Report, quiet
from training.full import train_full
from training.history import Histories, History, Labelled
from training.publish import Lineage, Trained, read_lineage
from training.rows import Rows, no_columns, read_snapshot, write_snapshot
from training.runs import RunLog
from training.snapshot import newest_rows, update_rows
from training.tail import Tail
from training.update import train_update
from warehouse.client import Refused

log = logging.getLogger(__name__)

VISIBLE_WITHIN_SEC: Final = 1.0
"""How long an order waits for its newest label, which control has seen and which may still be on its way here."""
_LOOK_AGAIN_SEC: Final = 0.02
SNAPSHOT: Final = "snapshot"
"""Key of an initial order's evidence: the sha256 of the rows to train on."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Trainer:
    """Trains orders one after the other; keeps each model's labelled rows between them. Not thread-safe.

    With a `tail` it does not wait until the newest labels are in ClickHouse. `histories` are those of the trainer before this one, if
    there was one, and become this one's.
    """

    def __init__(
        self,
        settings: Settings,
        client: Client,
        tail: Tail | None = None,
        histories: Histories | None = None,
        clock: Clock = now_ms,
    ) -> None:
        self._settings, self._client, self._tail, self._clock = settings, client, tail, clock
        self._store = ArtifactStore(settings.artifacts_dir)
        self._histories: Histories = {} if histories is None else histories
        for history in self._histories.values():
            history.reconnect(client, tail)
        self._files: dict[str, tuple[str, Rows]] = {}
        """The training file that a model's newest order replayed, by model."""
        self._rows_ms = 0.0
        """How long the order took to find its labelled rows."""

    def train(self, order: Retrain, progress: Report = quiet) -> Candidate:
        """The candidate that `order` gives. An order that cannot be followed gives one that did not pass, with the reason.

        Raises:
            Outage: ClickHouse or Kafka does not answer; the order is to be tried again.
        """
        started = time.perf_counter()
        self._rows_ms = 0.0
        try:
            load_spec(self._settings.models_dir / known_name(order.model))
            with RunLog(self._settings.artifacts_dir, order, progress) as run:
                trained = self._trained(order, run)
            writing = time.perf_counter()
            artifact = self._store.write(trained.manifest, trained.files)
            spent_ms = {"rows": self._rows_ms, "write": _ms_since(writing)}
        except (Outage, Refused, KafkaException):
            raise
        except (UserError, ArtifactError) as error:
            return self._refused(order, str(error), started)
        except Exception as error:
            # The model author's code may raise anything; the next order must not wait for its mend.
            log.exception("%s: training of %s failed", order.model, order.new_version)
            return self._refused(order, f"training failed: {type(error).__name__}: {error}", started)
        return Candidate(
            event_id=candidate_id(order),
            model=order.model,
            at_ms=self._clock(),
            retrain_id=order.event_id,
            kind=order.kind,
            version=order.new_version,
            artifact=artifact,
            base_version=order.base_version,
            passed=not trained.problems,
            reason="; ".join(trained.problems),
            rows=trained.manifest.rows,
            seed=order.seed,
            label_from_ms=trained.manifest.label_from_ms,
            label_to_ms=trained.manifest.label_to_ms,
            newest_prediction_id=trained.newest_prediction_id,
            train_ms=_ms_since(started),
            report={"dedupe_key": order.dedupe_key, "spent_ms": spent_ms, **trained.report},
        )

    def _trained(self, order: Retrain, report: Report) -> Trained:
        models_dir = self._settings.models_dir
        spec = load_spec(models_dir / order.model)
        base = self._store.open(order.model, order.base_artifact) if order.base_artifact else None
        if order.kind == "initial":
            sha256 = snapshot_of(order)
            lineage = Lineage(retrain_id=order.event_id, snapshot=sha256, file=sha256)
            return train_full(models_dir, order, self._file(spec, sha256), lineage, base, report)
        if order.kind == "update":
            if base is None:
                raise UserError(f"{order.model}: base_artifact: found none, an update expects one")
            settings = spec.train
            labelled = self._labelled(spec, order.labels_through_ms)
            rows = update_rows(
                labelled, self._base_file(spec, base), settings.recent_rows, settings.replay_rows, order.seed
            )
            return train_update(models_dir, order, rows, base, report)
        file = self._base_file(spec, base)
        newest = newest_rows(self._labelled(spec, order.labels_through_ms), file, spec.train.major_rows)
        lineage = Lineage(
            retrain_id=order.event_id,
            snapshot=write_snapshot(self._settings.artifacts_dir, spec.name, newest),
            file=read_lineage(base).file if base is not None else "",
        )
        return train_full(models_dir, order, newest, lineage, base, report)

    def _labelled(self, spec: ModelSpec, through_ms: int) -> Labelled:
        """The labelled rows; waits a moment for the newest label that the order was made from. An order from long ago finds it at once."""
        started = time.perf_counter()
        history = self._histories.get(spec.name)
        if history is None or history.spec != spec:
            history = self._histories[spec.name] = History(self._client, spec, self._tail)
        deadline = time.monotonic() + VISIBLE_WITHIN_SEC
        labelled = history.labelled(through_ms)
        while history.seen_ms < through_ms and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN_SEC)
            labelled = history.labelled(through_ms)
        self._rows_ms = _ms_since(started)
        return labelled

    def _base_file(self, spec: ModelSpec, base: Artifact | None) -> Rows:
        """The rows of the file that the base's first version was trained on; none if there was no file."""
        sha256 = read_lineage(base).file if base is not None else ""
        return self._file(spec, sha256) if sha256 else Rows.from_file(no_columns(spec), np.zeros(0))

    def _file(self, spec: ModelSpec, sha256: str) -> Rows:
        known = self._files.get(spec.name)
        if known is None or known[0] != sha256:
            known = (sha256, read_snapshot(self._settings.artifacts_dir, spec, sha256))
            self._files[spec.name] = known
        return known[1]

    def _refused(self, order: Retrain, reason: str, started: float) -> Candidate:
        return refusal(order, reason, self._clock(), _ms_since(started))


def known_name(model: str) -> str:
    """`model`, if it can be a model's name: it becomes part of paths.

    Raises:
        UnknownModel: it cannot.
    """
    if NAME.match(model) is None:
        raise UnknownModel(f"no model {model[:60]!r}: expected a name of a-z, 0-9 and _")
    return model


def snapshot_of(order: Retrain) -> str:
    """The sha256 of the snapshot that an initial order names.

    Raises:
        UserError: it names none.
    """
    sha256 = order.evidence.get(SNAPSHOT)
    if not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
        raise UserError(
            f"{order.model}: evidence.{SNAPSHOT}: found {sha256!r}, expected the sha256 of a snapshot"
        )
    return sha256


def candidate_id(order: Retrain) -> str:
    """The event id of the one candidate of an order."""
    return str(name_id("candidate", order.model, order.event_id))


def refusal(order: Retrain, reason: str, at_ms: int, train_ms: float = 0.0) -> Candidate:
    """No version, and why."""
    return Candidate(
        event_id=candidate_id(order),
        model=order.model,
        at_ms=at_ms,
        retrain_id=order.event_id,
        kind=order.kind,
        version=order.new_version,
        artifact="",
        base_version=order.base_version,
        passed=False,
        reason=reason,
        seed=order.seed,
        train_ms=train_ms,
        report={"dedupe_key": order.dedupe_key},
    )


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
