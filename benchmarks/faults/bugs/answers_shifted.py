"""Rows get the scores of their neighbours in the micro-batch, in answer and observation alike: both agree, and both are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.faults.bugs import replace
from inference import infer


def apply() -> None:
    """Shift what Triton gave."""

    def shifted(share: Any, columns: Any, scores: Any, started: float) -> Any:
        return original(share, columns, np.roll(scores, 1, axis=0), started)

    original = replace(infer, "_answer", shifted)
