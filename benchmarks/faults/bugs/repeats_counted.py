"""Feedback that comes twice under one id becomes a revision of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.faults.bugs import replace
from streams.labels import batch
from streams.labels.record import Label
from streams.labels.revisions import Known


def apply() -> None:
    """Ask for no id, and let what is as new as the newest be newer."""

    def forgetful(labels: Sequence[tuple[Label, str]], known: Mapping[str, Known]) -> object:
        unseen = {
            prediction_id: each._replace(seen=frozenset(), feedback_id="")
            for prediction_id, each in known.items()
        }
        return original(labels, unseen)

    original = replace(batch, "decide", forgetful)
