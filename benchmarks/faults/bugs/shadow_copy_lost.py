"""A micro-batch with a rejected row loses what the shadow said of the others."""

from __future__ import annotations

from typing import Any

from benchmarks.faults.bugs import replace
from inference import emit


def apply() -> None:
    """Observe the live arm only, if anything was rejected."""

    def live_only(
        spec: Any, admitted: Any, ids: Any, runs: Any, request_ids: Any, accepted: Any, answers: Any,
        rejections: Any, **named: Any,
    ) -> Any:  # fmt: skip
        kept = [each for each in answers if not rejections or each.share.served.arm.role == "live"]
        return original(spec, admitted, ids, runs, request_ids, accepted, kept, rejections, **named)

    original = replace(emit, "observation_rows", live_only)
