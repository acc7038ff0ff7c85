"""What the account counts, and which of it must be 0."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

EXAMPLES: Final = 5


@dataclass
class Account:
    """Counts; everything but what is named a total must be 0."""

    events: int = 0
    """Total of request rows that the broker acknowledged."""
    answered: int = 0
    feedback: int = 0
    """Total of feedback records."""
    lost: int = 0
    """Requests without an answer or rejection, and without a live row in ClickHouse: each counts."""
    duplicated: int = 0
    """Answers and rows beyond the first."""
    unrequested: int = 0
    """Answers and rows to nothing that was sent."""
    torn: int = 0
    """Answer and row differ: in status, label, version or arm."""
    misordered: int = 0
    wrong: int = 0
    """Answers and rows that a request cannot have: good ones rejected, poison answered or rejected with another reason, ids mixed up,
    other scores or another class than its features give, a row with other features or another entity than were sent."""
    shadow_rows: int = 0
    shadow_given_up: int = 0
    """Total of copies whose arm did not answer in time: they are there, marked so."""
    shadow_missing: int = 0
    """Answered requests without their copy."""
    shadow_duplicated: int = 0
    shadow_lost: int = 0
    """Copies in `observations` that are not in ClickHouse, or the other way round."""
    lookups_mismatch: int = 0
    """Rows missing, surplus or different in the tables that materialized views fill."""
    poison_injected: int = 0
    poison_dead_lettered: int = 0
    dead_letters_wrong: int = 0
    """Dead letters of what was no poison, repeated ones, altered bytes, labels given up before their time, and differences between topic
    and table."""
    orphans_waiting: int = 0
    """Total of orphans too young to be told from labels that are early."""
    orphans_revived: int = 0
    """Total of labels that waited so long that they were given up, and joined after all."""
    outcomes: int = 0
    outcomes_mismatch: int = 0
    metrics_mismatch: int = 0
    orders: int = 0
    """Total of orders to train."""
    orders_refused: int = 0
    """Total of those that came to no artifact, with a reason."""
    orders_mismatch: int = 0
    """Commands without their one order, orders without their one candidate, candidates without their one decision, numbers out of turn,
    artifacts that are not whole."""
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, fault: str, count: int, example: str) -> None:
        """Count a fault, and remember a few cases of it."""
        if count:
            setattr(self, fault, getattr(self, fault) + count)
            found = self.examples.setdefault(fault, [])
            if len(found) < EXAMPLES:
                found.append(example)

    @property
    def broken(self) -> dict[str, int]:
        """The guarantees that do not hold."""
        found = {name: getattr(self, name) for name in MUST_BE_ZERO if getattr(self, name)}
        missing = self.poison_injected - self.poison_dead_lettered
        return found | ({"poison_not_dead_lettered": missing} if missing else {})


MUST_BE_ZERO: Final = (
    "lost", "duplicated", "unrequested", "torn", "misordered", "wrong", "shadow_missing", "shadow_duplicated", "shadow_lost", "lookups_mismatch",
    "dead_letters_wrong", "outcomes_mismatch", "metrics_mismatch", "orders_mismatch",
)  # fmt: skip
