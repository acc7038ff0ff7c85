"""Events of the control path and of the metrics: small, JSON, one struct a topic.

Fields are only ever added, always with a default, so that every reader reads every writer. Each struct's fields are the columns
of the table of the same name (`schemas/migrations`), so that the sink hands the JSON to ClickHouse unchanged: nested objects
arrive there as JSON text.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

Evidence: TypeAlias = dict[str, Any]
"""The numbers a decision was made from."""

RetrainKind: TypeAlias = Literal["initial", "update", "major"]
Stage: TypeAlias = Literal["empty", "steady", "shadow", "approval"]
"""empty: no version yet; steady: a champion alone; shadow: a major is measured against it; approval: it waits for a person."""
Action: TypeAlias = Literal[
    "introduce",   # the first version goes live
    "promote_update", "promote_major", "start_shadow", "await_approval", "refuse", "revert", "rollback", "freeze", "unfreeze",
    "pass",        # what was sent up to now may be rejected without limit
]  # fmt: skip


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What every event carries."""

    event_id: str
    """Deterministic: a repeat has the same id."""
    model: str
    at_ms: int
    """When it was decided or computed, milliseconds since 1970, UTC."""


class MetricPartial(msgspec.Struct, frozen=True, kw_only=True, tag="metric"):
    """What new rows of one source partition add to the sums of one window. Written once, in one transaction with the offset it
    covers: all partials of a window add up."""

    model: str
    source: str
    """`topic:partition` that these rows came through."""
    through_offset: int
    """The source's next offset when this was computed."""
    window_start_ms: int
    window_sec: int
    role: str
    arm: str
    version: str
    segment: str = ""
    """"" for all rows, else `feature=value`."""
    rows: int = 0
    rejected: int = 0
    labelled: int = 0
    correct: int = 0
    loss_sum: float = 0.0
    brier_sum: float = 0.0
    confusion: list[int] = []
    """Row-major [truth][label] counts over the spec's classes; empty for a regression."""
    latency_ms: list[int] = []
    """Counts in the buckets of `stats.histogram.LATENCY_EDGES_MS`."""


class InputPartial(msgspec.Struct, frozen=True, kw_only=True, tag="inputs"):
    """What new rows of one source partition add to the histograms of one window's inputs and scores, in the bins of a reference."""

    model: str
    source: str
    through_offset: int
    window_start_ms: int
    window_sec: int
    version: str
    artifact: str
    """Whose reference the bins are of."""
    rows: int
    counts: dict[str, list[int]]
    """Feature name (or `score`) → counts per bin."""


class LossPartial(msgspec.Struct, frozen=True, kw_only=True, tag="losses"):
    """The live arm's losses of new outcomes of one source partition, in order. Written once."""

    model: str
    source: str
    through_offset: int
    version: str
    errors: list[float]
    """0/1 error for a classification, squared error for a regression."""
    newest_ms: int


Partial: TypeAlias = MetricPartial | InputPartial | LossPartial


class WindowMetrics(Event, frozen=True, kw_only=True):
    """One window of one arm and segment, merged over source partitions; a later one with a higher revision replaces it."""

    window_start_ms: int
    window_sec: int
    role: str
    arm: str
    version: str
    segment: str
    revision: int
    rows: int
    rejected: int
    labelled: int
    correct: int
    accuracy: float | None
    f1_macro: float | None
    log_loss: float | None
    brier: float | None
    latency_p50_ms: float | None
    latency_p99_ms: float | None


class DriftEvidence(Event, frozen=True, kw_only=True):
    """One drift statistic of one window (inputs, scores) or at one point of the stream (loss)."""

    window_start_ms: int
    window_sec: int
    version: str
    test: Literal["psi", "adwin"]
    """Heuristics: neither holds a false-alarm budget under continuous monitoring."""
    subject: str
    """Feature name, `score` or `loss`."""
    statistic: float
    threshold: float
    rows: int
    drifted: bool
    revision: int = 0


class Alert(Event, frozen=True, kw_only=True):
    """Evidence that crossed its threshold."""

    kind: Literal[
        "input_drift", "score_drift", "loss_drift", "loss_recovered", "partition_halted", "records_missing"
    ]
    severity: Literal["severe", "normal", "minor"]
    subject: str
    version: str
    message: str
    evidence: Evidence


class Command(Event, frozen=True, kw_only=True):
    """A person's order to the control room."""

    action: Literal["freeze", "unfreeze", "rollback", "approve", "reject", "retrain", "train", "pass"]
    version: str = ""
    by: str = ""
    reason: str = ""
    snapshot: str = ""
    """train: sha256 of the rows in the artifact store."""
    rows: int = 0
    left_out: int = 0
    """train: how many rows of the file had faults and are not in the snapshot."""
    seed: int | None = None
    """train: None draws one from the order's id."""


class Retrain(Event, frozen=True, kw_only=True):
    """An order for a new version."""

    kind: RetrainKind
    reason: str
    base_version: str
    base_artifact: str
    new_version: str
    dedupe_key: str
    labels_through_ms: int
    """Only labels joined up to here are used (`outcomes.joined_at`)."""
    seed: int
    evidence: Evidence


class Candidate(Event, frozen=True, kw_only=True):
    """A new version, or the reason why there is none (`artifact` is "")."""

    retrain_id: str
    kind: RetrainKind
    version: str
    artifact: str
    """Folder name in the store: `<major>.<update>-<first 12 of the manifest's sha256>`."""
    base_version: str
    passed: bool
    """Whether the gates on unseen rows were passed."""
    reason: str = ""
    rows: int = 0
    seed: int = 0
    label_from_ms: int = 0
    label_to_ms: int = 0
    """The newest label used was joined then (`outcomes.joined_at`)."""
    newest_prediction_id: str = ""
    train_ms: float = 0.0
    report: Evidence = {}
    """Metrics on unseen rows of the candidate and of its base, loss curve, and what else the gates saw."""


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One way to answer: a version, and whether its answers are live or shadow copies."""

    name: str
    """champion, challenger, major (the last major in shadow), baseline."""
    role: Literal["live", "shadow"]
    version: str
    artifact: str
    weight: float = 1.0
    """Share of live traffic (live arms), or of it that is copied (shadow arms)."""


class RouteTable(Event, frozen=True, kw_only=True):
    """Who answers. Compacted by model; the highest revision holds."""

    revision: int
    stage: Stage
    arms: list[Arm]
    frozen: bool = False
    """The automaton is stopped for this model; people still decide."""
    champion: str = ""
    major: str = ""
    """Last promoted major, `n.0`, that updates are measured against."""
    previous: str = ""
    """Artifact that a rollback returns to."""
    retained: list[str] = []
    """Artifacts that must stay in the store and loaded though no arm names them."""
    rejections_pass_until_ms: int = 0
    """Requests with a timestamp up to this are rejected without limit: they count for no halt."""


class Rollout(Event, frozen=True, kw_only=True):
    """What was decided about a version, with its evidence; written in one transaction with its route table."""

    action: Action
    version: str
    artifact: str
    revision: int
    stage: Stage
    reason: str
    by: str = "controller"
    evidence: Evidence


class DeadLetterDecision(Event, frozen=True, kw_only=True):
    """What an operator did with one dead letter; written in one transaction with the redriven record. A dead letter is decided on once."""

    action: Literal["redriven", "discarded"]
    stage: str
    reason: str
    """Why the record died."""
    dead_letter_topic_id: str
    dead_letter_partition: int
    dead_letter_offset: int
    source_topic: str
    source_topic_id: str
    source_partition: int
    source_offset: int
    attempt: int
    """The attempt that died; its redrive is the next."""
    by: str = ""
    comment: str = ""
