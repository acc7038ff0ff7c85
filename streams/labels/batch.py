"""One step of the stage as data: what came in and what was due, turned into what one transaction writes.

Nothing is written here, and nothing changes that would have to be undone if the transaction is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import msgspec
from clickhouse_connect.driver.client import Client

from schemas.errors import Rejection
from schemas.spec import ModelSpec
from streams.labels.lookup import find
from streams.labels.observed import Observed
from streams.labels.outcomes import outcome_batch, outcome_values
from streams.labels.recent import Recent
from streams.labels.record import Label, Received, decode
from streams.labels.revisions import Accepted, Known, decide
from streams.labels.waiting import Entry, Name, Waiting, name_of, state_key


@dataclass
class Output:
    """What one transaction writes, and what is true once it is committed."""

    outcomes: list[tuple[str, bytes]] = field(default_factory=list)
    """Key and value: the key is the feedback's `topic:partition`."""
    letters: list[tuple[Received, Rejection]] = field(default_factory=list)
    state: dict[bytes, Received | None] = field(default_factory=dict)
    """State key → what waits from now on, None for what no longer does."""
    waits: dict[bytes, tuple[Received, Name]] = field(default_factory=dict)
    orphans: list[tuple[Entry, Received]] = field(default_factory=list)
    deferred: list[Entry] = field(default_factory=list)
    known: dict[str, Known] = field(default_factory=dict)
    results: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(model, result) → records."""

    @property
    def writes(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.outcomes or self.letters or self.state)


@dataclass(frozen=True)
class _Candidate:
    label: Label
    entry: Entry | None
    """None if it has just come in."""


@dataclass(frozen=True)
class Stage:
    """What a step looks at."""

    client: Client
    specs: Mapping[str, ModelSpec]
    """By feedback topic."""
    topic_ids: Mapping[str, UUID]
    observed: Observed
    recent: Recent
    waiting: Waiting


def step(stage: Stage, new: Sequence[Received], due: Sequence[Entry], now_ms: int) -> Output:
    """What to write for the records `new` and for those `due` that waited; outcomes are joined at `now_ms`.

    Raises:
        Outage: ClickHouse is away; nothing has happened.
    """
    output = Output()
    for topic, spec in stage.specs.items():
        candidates = _decoded(
            spec,
            [each for each in new if each.topic == topic],
            [each for each in due if each.received.topic == topic],
            output,
        )
        if candidates:
            _join(stage, topic, spec, candidates, now_ms, output)
    for entry in stage.waiting.surplus():
        output.state[entry.key] = None
    return output


def _decoded(
    spec: ModelSpec, new: Sequence[Received], due: Sequence[Entry], output: Output
) -> list[_Candidate]:
    """The labels among the records; what is none is settled here. Those that waited came first, so they stand first."""
    candidates = []
    for received, entry in [*((each.received, each) for each in due), *((each, None) for each in new)]:
        try:
            label = decode(received, spec)
        except Rejection as rejection:
            output.results[spec.name, "rejected"] += 1
            if not received.orphaned:
                output.letters.append((received, rejection.bare()))
            label = None
        else:
            if label is None:
                output.results[spec.name, "passed"] += 1
        if label is not None:
            candidates.append(_Candidate(label, entry))
        elif entry is not None:
            # It waited as a label; the spec has changed since, and it is none any more.
            output.state[entry.key] = None
    return candidates


def _join(
    stage: Stage, topic: str, spec: ModelSpec, candidates: Sequence[_Candidate], now_ms: int, output: Output
) -> None:
    labels = [each.label for each in candidates]
    caught_up = [each.entry is not None and each.entry.caught_up for each in candidates]
    found = find(stage.client, spec, labels, caught_up, stage.observed, stage.recent)
    joined = []
    for candidate, prediction_id in zip(candidates, found.ids, strict=True):
        if prediction_id:
            joined.append((candidate.label, prediction_id))
            if candidate.entry is not None:
                output.state[candidate.entry.key] = None
        elif candidate.entry is not None:
            _still_missing(candidate.label, candidate.entry, spec, now_ms, output)
        else:
            key = state_key(candidate.label.received, candidate.label.feedback_id)
            if key not in stage.waiting and key not in output.waits:
                output.state[key] = candidate.label.received
                output.waits[key] = candidate.label.received, name_of(spec.name, candidate.label)
                output.results[spec.name, "waiting"] += 1
    # What redriven and ordinary feedback of one step says of the same prediction.
    accepted, changed = decide(joined, {**found.known, **output.known} if output.known else found.known)
    output.known |= changed
    _count(accepted, len(joined), spec, output)
    for source, part in _by_source(accepted).items():
        batch = outcome_batch(part, found.predictions, spec, stage.topic_ids[topic], now_ms)
        output.outcomes += [(source, value) for value in outcome_values(batch)]


def _still_missing(label: Label, entry: Entry, spec: ModelSpec, now_ms: int, output: Output) -> None:
    received = label.received
    age_ms = now_ms - received.arrived_ms
    if received.orphaned:
        if age_ms >= spec.feedback.matures_after_sec * 1000:
            output.state[entry.key] = None
        else:
            output.deferred.append(entry)
    elif entry.caught_up and age_ms >= spec.feedback.orphan_after_sec * 1000:
        orphan = msgspec.structs.replace(received, orphaned=True)
        output.state[entry.key] = orphan
        output.orphans.append((entry, orphan))
        output.letters.append((received, _unknown(label)))
        output.results[spec.name, "orphan"] += 1
    else:
        output.deferred.append(entry)


def _unknown(label: Label) -> Rejection:
    name = "prediction_id" if label.prediction_id else "request_id"
    return Rejection(
        "orphan_feedback",
        name,
        "the id of an answered request",
        f"nothing is known of {(label.prediction_id or label.request_id)[:60]!r}",
    )


def _count(accepted: Sequence[Accepted], joined: int, spec: ModelSpec, output: Output) -> None:
    revised = sum(each.revision > 0 for each in accepted)
    output.results[spec.name, "joined"] += len(accepted) - revised
    output.results[spec.name, "revised"] += revised
    output.results[spec.name, "repeated"] += joined - len(accepted)


def _by_source(accepted: Sequence[Accepted]) -> dict[str, list[Accepted]]:
    parts: dict[str, list[Accepted]] = {}
    for each in accepted:
        received = each.label.received
        parts.setdefault(f"{received.topic}:{received.partition}", []).append(each)
    return parts
