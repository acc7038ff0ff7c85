"""The topic table: every topic, its key, its partitions and how long it is kept."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

DAY_MS: Final = 86_400_000


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """One topic, or one per model if `per_model` (then `name` is a prefix: `requests.<model>`)."""

    name: str
    per_model: bool = False
    key: str
    value: str
    media_type: Literal["application/json", "application/vnd.apache.arrow.stream", "application/octet-stream"]
    written_by: str
    read_by: tuple[str, ...]
    partitions: int
    retention_ms: int | None
    """None: kept for ever (or compacted)."""
    compacted: bool = False
    max_message_bytes: int = 1_048_588
    personal: bool = False
    """May hold personal data: short retention, its own access list."""

    def for_model(self, model: str) -> str:
        """The topic's name for `model`."""
        return f"{self.name}.{model}" if self.per_model else self.name

    def config(self) -> dict[str, str]:
        """The broker's settings for this topic."""
        config = {"max.message.bytes": str(self.max_message_bytes)}
        if self.compacted:
            config |= {
                "cleanup.policy": "compact",
                "min.cleanable.dirty.ratio": "0.1",
                "segment.ms": "3600000",
            }
        else:
            config["retention.ms"] = str(-1 if self.retention_ms is None else self.retention_ms)
        return config


JSON: Final = "application/json"
ARROW: Final = "application/vnd.apache.arrow.stream"
OBSERVATION_BYTES: Final = 8 * 1024 * 1024
COPY_BYTES: Final = 2 * OBSERVATION_BYTES
"""Of a record that holds another and says something of it: a dead letter, a redrive, feedback that waits."""
DEFAULT_PARTITIONS: Final = 2

PREDICTIONS: Final = Topic(
    name="predictions", per_model=True, key="the request's key, same partition", value="answer, or rejection with its reason",
    media_type="application/json", written_by="gateway", read_by=("producers",),
    partitions=DEFAULT_PARTITIONS, retention_ms=7 * DAY_MS, max_message_bytes=OBSERVATION_BYTES,
)  # fmt: skip
REQUESTS: Final = Topic(
    name="requests", per_model=True, key="entity (tenant, session, account …)", value="features, bare or in an envelope",
    media_type="application/json", written_by="producers", read_by=("gateway",),
    partitions=DEFAULT_PARTITIONS, retention_ms=7 * DAY_MS, max_message_bytes=OBSERVATION_BYTES, personal=True,
)  # fmt: skip
FEEDBACK: Final = Topic(
    name="feedback", per_model=True, key="the request's key (so that one prediction's feedback is ordered)",
    value="label, rating, thumb, correction, comment, implicit signal",
    media_type="application/json", written_by="producers", read_by=("labels", "sink"),
    partitions=DEFAULT_PARTITIONS, retention_ms=7 * DAY_MS, personal=True,
)  # fmt: skip
REDRIVES: Final = Topic(
    name="redrives", per_model=True, key="the original's key, same partition", value="the original request, plus headers that say where it lay",
    media_type="application/octet-stream", written_by="operators (dead-letters redrive)", read_by=("gateway",),
    partitions=DEFAULT_PARTITIONS, retention_ms=7 * DAY_MS, max_message_bytes=COPY_BYTES, personal=True,
)  # fmt: skip
FEEDBACK_REDRIVES: Final = Topic(
    name="feedback_redrives", per_model=True, key="the original's key, same partition",
    value="the original feedback, plus headers that say where it lay",
    media_type="application/octet-stream", written_by="operators (dead-letters redrive)", read_by=("labels", "sink"),
    partitions=DEFAULT_PARTITIONS, retention_ms=7 * DAY_MS, max_message_bytes=OBSERVATION_BYTES, personal=True,
)  # fmt: skip
OBSERVATIONS: Final = Topic(
    name="observations", key="model", value="one micro-batch, many rows",
    media_type="application/vnd.apache.arrow.stream", written_by="gateway", read_by=("sink", "worker"),
    partitions=DEFAULT_PARTITIONS, retention_ms=7 * DAY_MS, max_message_bytes=OBSERVATION_BYTES,
)  # fmt: skip
REPLAYS: Final = Topic(
    name="replays", key="run and request partition", value="what a version would have answered to requests asked before, many rows",
    media_type="application/vnd.apache.arrow.stream", written_by="people (tidemill replay)", read_by=("sink",),
    partitions=DEFAULT_PARTITIONS, retention_ms=2 * DAY_MS, max_message_bytes=OBSERVATION_BYTES,
)  # fmt: skip
OUTCOMES: Final = Topic(
    name="outcomes", key="source topic and partition of the feedback", value="predictions joined with labels, many rows",
    media_type="application/vnd.apache.arrow.stream", written_by="labels", read_by=("sink", "worker", "control"),
    partitions=DEFAULT_PARTITIONS, retention_ms=7 * DAY_MS, max_message_bytes=OBSERVATION_BYTES,
)  # fmt: skip
PARTIALS: Final = Topic(
    name="partials", key="model", value="what new rows add to metrics and drift, by source partition",
    media_type="application/json", written_by="worker (measure)", read_by=("worker (merge)",),
    partitions=DEFAULT_PARTITIONS, retention_ms=2 * DAY_MS, max_message_bytes=OBSERVATION_BYTES,
)  # fmt: skip
METRICS: Final = Topic(
    name="metrics", key="model", value="a window's metrics, merged over source partitions",
    media_type="application/json", written_by="worker (merge)", read_by=("sink",),
    partitions=DEFAULT_PARTITIONS, retention_ms=7 * DAY_MS,
)  # fmt: skip
DRIFT: Final = Topic(
    name="drift", key="model", value="drift evidence, merged over source partitions",
    media_type="application/json", written_by="worker (merge)", read_by=("sink",),
    partitions=DEFAULT_PARTITIONS, retention_ms=7 * DAY_MS,
)  # fmt: skip
ALERTS: Final = Topic(
    name="alerts", key="model", value="evidence that crossed its threshold",
    media_type="application/json", written_by="worker (merge), gateway, sink", read_by=("sink", "control"),
    partitions=DEFAULT_PARTITIONS, retention_ms=30 * DAY_MS,
)  # fmt: skip
COMMANDS: Final = Topic(
    name="commands", key="model", value="a person's order: freeze, unfreeze, rollback, approve, reject, retrain, train, pass",
    media_type="application/json", written_by="people", read_by=("control",),
    partitions=1, retention_ms=None,
)  # fmt: skip
RETRAINS: Final = Topic(
    name="retrains", key="model", value="reason, evidence, base version, budget, dedupe key",
    media_type="application/json", written_by="control", read_by=("training", "sink"),
    partitions=1, retention_ms=None,
)  # fmt: skip
CANDIDATES: Final = Topic(
    name="candidates", key="model", value="new version, evaluation report, artifact",
    media_type="application/json", written_by="training", read_by=("control", "sink"),
    partitions=1, retention_ms=None,
)  # fmt: skip
ROLLOUTS: Final = Topic(
    name="rollouts", key="model", value="what was decided, with its evidence",
    media_type="application/json", written_by="control", read_by=("sink",),
    partitions=1, retention_ms=None,
)  # fmt: skip
ROUTES: Final = Topic(
    name="routes", key="model", value="the route table: arms, weights, stage, revision",
    media_type="application/json", written_by="control", read_by=("gateway", "sink"),
    partitions=1, retention_ms=None, compacted=True,
)  # fmt: skip
DEAD_LETTERS: Final = Topic(
    name="dead-letters", key="original key", value="original bytes and headers, plus reason, stage and coordinates",
    media_type="application/octet-stream", written_by="any stage", read_by=("redrive", "sink"),
    partitions=DEFAULT_PARTITIONS, retention_ms=3 * DAY_MS, max_message_bytes=COPY_BYTES, personal=True,
)  # fmt: skip
DEAD_LETTER_DECISIONS: Final = Topic(
    name="dead_letter_decisions", key="the decision's event id", value="what an operator did with a dead letter: redriven or discarded",
    media_type="application/json", written_by="operators (dead-letters redrive, discard)", read_by=("redrive", "sink"),
    partitions=1, retention_ms=30 * DAY_MS,
)  # fmt: skip
STATE: Final = Topic(
    name="state", key="owner and source partition", value="a stage's state with the offsets it covers",
    media_type="application/octet-stream", written_by="labels, worker, control",
    read_by=("labels", "worker", "control"),
    partitions=DEFAULT_PARTITIONS, retention_ms=None, compacted=True, max_message_bytes=COPY_BYTES,
)  # fmt: skip

TOPICS: Final = (
    # `predictions` stands before `requests`: a request must never find its answer's topic missing.
    PREDICTIONS, REQUESTS, REDRIVES, FEEDBACK, FEEDBACK_REDRIVES, OBSERVATIONS, REPLAYS, OUTCOMES, PARTIALS, METRICS, DRIFT, ALERTS,
    COMMANDS, RETRAINS, CANDIDATES, ROLLOUTS, ROUTES, DEAD_LETTERS, DEAD_LETTER_DECISIONS, STATE,
)  # fmt: skip


def topics_of(models: list[str]) -> list[tuple[str, Topic]]:
    """(name, topic) of all topics of a deployment that serves `models`, in the order in which to create them."""
    return [
        (topic.for_model(model), topic) for topic in TOPICS for model in (models if topic.per_model else [""])
    ]
