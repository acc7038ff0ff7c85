"""What the control room remembers of one model, besides its route table. Stored in the compacted topic `state`, in the same
transaction as the decisions made from it and the offsets that it covers."""

from __future__ import annotations

import msgspec

from schemas.artifact import parse_version
from schemas.events import RetrainKind
from stats.sequential import BettingTest


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A retrain order that has not been answered by a candidate."""

    retrain_id: str
    kind: RetrainKind
    version: str
    at_ms: int


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Paired losses of two versions on the same labelled rows, tested as they come."""

    better: BettingTest
    """Null: the contender loses more than the reference by at least the margin. Rejected: it is not worse."""
    worse: BettingTest
    """Null: the contender loses at most the margin more than the reference. Rejected: it is worse."""
    rows: int = 0
    difference: float = 0.0
    """Sum of loss(contender) - loss(reference), scaled to [-1, 1]."""

    @property
    def mean_difference(self) -> float:
        """Mean of the differences; below 0 the contender is better."""
        return self.difference / self.rows if self.rows else 0.0


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """One model's counters, open orders and running comparisons."""

    labels: int = 0
    """Live predictions that got their first label."""
    labels_at_update: int = 0
    """`labels` when the last update was ordered."""
    joined_through_ms: int = 0
    """Newest `joined_at` seen."""
    orders: dict[str, Order] = {}
    """Open orders by kind."""
    highest: dict[int, int] = {}
    """Major → highest update number ever ordered: numbers are never used twice."""
    major_ordered_at_ms: int = 0
    chain: Comparison | None = None
    """The live chain of updates against its major."""
    challenge: Comparison | None = None
    """The challenger in shadow against live."""

    def next_update(self, champion: str) -> str:
        """The version number of the next update of `champion`."""
        major, update = parse_version(champion)
        return f"{major}.{max(update, self.highest.get(major, 0)) + 1}"

    def next_major(self, champion: str) -> str:
        """The version number of the next major; of the first version 1.0, also after it was refused."""
        if not champion and "initial" not in self.orders:
            return "1.0"
        majors = [*self.highest, *([parse_version(champion)[0]] if champion else [])]
        return f"{max(majors, default=0) + 1}.0"

    def ordered(self, order: Order) -> ModelState:
        """This state with `order` open and its number taken."""
        major, update = parse_version(order.version)
        return msgspec.structs.replace(
            self,
            orders={**self.orders, order.kind: order},
            highest={**self.highest, major: max(update, self.highest.get(major, 0))},
        )

    def answered(self, retrain_id: str) -> ModelState:
        """This state without the order that `retrain_id` names."""
        return msgspec.structs.replace(
            self,
            orders={kind: order for kind, order in self.orders.items() if order.retrain_id != retrain_id},
        )
