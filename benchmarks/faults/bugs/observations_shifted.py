"""Observations are one row off: each says the scores and the label of its neighbour, and the answer says its own."""

from __future__ import annotations

from dataclasses import replace as changed
from typing import Any

import numpy as np

from benchmarks.faults.bugs import replace
from inference import emit


def apply() -> None:
    """Shift the scores of what is observed."""

    def shifted(
        spec: Any, admitted: Any, ids: Any, runs: Any, request_ids: Any, accepted: Any, answers: Any,
        *others: Any, **named: Any,
    ) -> Any:  # fmt: skip
        off = [changed(answer, scores=np.roll(answer.scores, 1, axis=0)) for answer in answers]
        return original(spec, admitted, ids, runs, request_ids, accepted, off, *others, **named)

    original = replace(emit, "observation_rows", shifted)
