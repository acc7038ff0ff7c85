"""What was under way when a partition was revoked is committed all the same, with the metadata that the next poll fetched afresh."""

from __future__ import annotations

from benchmarks.faults.bugs import replace
from inference.progress import Progress


def apply() -> None:
    """A revocation ends no ownership."""

    def go_on(_self: Progress, _topic: str, _partition: int) -> None:
        """It is still ours."""

    replace(Progress, "revoke", go_on)
