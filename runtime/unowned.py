"""Partitions that are nobody's: what a cooperative rebalance can leave behind, and the way out.

Such a rebalance takes two steps: who has what another is to get gives it back, and joins again so that it is given on. A static member that ends in
between comes back to what it had been assigned by then, without a rebalance: that is what static membership is for. Nobody joins again, the group is
stable, and no member sees that anything is missing. (Seen after 979 faults: half of the sink's partitions, for as long as the run went on.)

So the members ask whom the partitions belong to. Where some are nobody's although the group is stable, one of them has a passing member join:
whoever is new makes the group assign everything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Final

from confluent_kafka import Consumer, ConsumerGroupState, TopicPartition

from runtime.kafka import REQUEST_TIMEOUT_SEC, LastingAdmin, consumer
from runtime.positions import Place
from runtime.settings import Settings
from runtime.topics import Topics
from schemas.errors import Outage
from schemas.topics import STATE

log = logging.getLogger(__name__)

STRATEGY: Final = {"partition.assignment.strategy": "cooperative-sticky"}
UNOWNED_AFTER_SEC: Final = 10.0
"""Times one more than the slot, so that the members do not all act at once. Between the two steps partitions are nobody's, too: for as long as
it takes to give them back."""


class Unowned:
    """Sees to it that every partition of `topics` is a member's of `group`, whose members use `STRATEGY`."""

    def __init__(self, settings: Settings, group: str, topics: Collection[str]) -> None:
        self._settings, self._group, self._of = settings, group, frozenset(topics)
        self._topics, self._admin = Topics(settings), LastingAdmin(settings)
        self._patience_sec = UNOWNED_AFTER_SEC * (1 + settings.slot)
        self._unowned_sec: float | None = None
        """For how long some have been nobody's; None if none are."""

    def look(self, passed_sec: float) -> None:
        """Ask once, `passed_sec` after the last time; have the group assign anew what has been nobody's for too long.

        Raises:
            Outage: Kafka does not answer.
        """
        found = self.places()
        if not found:
            self._unowned_sec = None
            return
        self._unowned_sec = 0.0 if self._unowned_sec is None else self._unowned_sec + passed_sec
        if self._unowned_sec >= self._patience_sec:
            names = ", ".join(f"{topic}:{number}" for topic, number in sorted(found))
            log.warning("%s: nobody's for %.0f s: %s: assigning anew", self._group, self._unowned_sec, names)
            self._unowned_sec = None
            assign_anew(self._settings, self._group)

    def places(self) -> set[Place]:
        """What is nobody's although the group is stable.

        Raises:
            Outage: Kafka does not answer.
        """
        with self._admin.asking(f"who is in the group {self._group}") as client:
            asked = client.describe_consumer_groups([self._group], request_timeout=REQUEST_TIMEOUT_SEC)
            group = asked[self._group].result(2 * REQUEST_TIMEOUT_SEC)
        if group.state != ConsumerGroupState.STABLE:
            return set()
        owned = {
            (place.topic, place.partition)
            for member in group.members
            for place in member.assignment.topic_partitions
        }
        return {place for place in self._topics.places() if place[0] in self._of} - owned


def assign_anew(settings: Settings, group: str) -> None:
    """Make the group assign all partitions: join it for a moment.

    Raises:
        Outage: the group has not taken us in.
    """
    joined = False

    def on_assign(_: Consumer, __: list[TopicPartition]) -> None:
        nonlocal joined
        joined = True

    member = consumer(settings, group, **STRATEGY)
    try:
        # A topic that nobody in these groups reads, so that nothing is taken from anybody.
        member.subscribe([STATE.name], on_assign=on_assign)
        deadline_sec = time.monotonic() + REQUEST_TIMEOUT_SEC
        while not joined and time.monotonic() < deadline_sec:
            member.poll(0.1)
    finally:
        member.close()
    if not joined:
        raise Outage(f"the group {group} takes no member in")
