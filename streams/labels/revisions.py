"""Which labels say something new: pure decisions over what is known of their predictions.

Revisions are ordered by (event time, feedback id). A label that is newer than what is known becomes the next revision; one that is
older, or repeats a feedback id, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from streams.labels.record import Label


class Known(NamedTuple):
    """The newest label of a prediction, and the ids of the feedback that led to it as far as they are remembered."""

    at_ms: int
    feedback_id: str
    revision: int
    truth: str
    truth_value: float
    seen: frozenset[str]


class Accepted(NamedTuple):
    """A label that becomes revision `revision` of its prediction; `previous` is what it replaces."""

    label: Label
    prediction_id: str
    revision: int
    previous: Known | None


def decide(
    labels: Sequence[tuple[Label, str]], known: Mapping[str, Known]
) -> tuple[list[Accepted], dict[str, Known]]:
    """What of `labels` (each with its prediction's id, in order of arrival) is accepted, and what is known of these predictions then."""
    accepted: list[Accepted] = []
    changed: dict[str, Known] = {}
    for label, prediction_id in labels:
        previous = changed.get(prediction_id) or known.get(prediction_id)
        if previous is None:
            revision, seen = 0, frozenset((label.feedback_id,))
        elif label.feedback_id in previous.seen or (label.at_ms, label.feedback_id) <= previous[:2]:
            continue
        else:
            revision, seen = previous.revision + 1, previous.seen | {label.feedback_id}
        accepted.append(Accepted(label, prediction_id, revision, previous))
        changed[prediction_id] = Known(
            label.at_ms, label.feedback_id, revision, label.truth, label.truth_value, seen
        )
    return accepted, changed
