"""Poll: the consumer, in a thread of its own; assignments, revocations, pauses and rewinds."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Collection, Mapping
from typing import Final

from confluent_kafka import Consumer, Message, TopicPartition

from inference.limits import decode_tally
from inference.model import Fragment
from inference.progress import Assignment, Progress
from runtime.gaps import Gap, Stranded
from runtime.kafka import REQUEST_TIMEOUT_SEC, callback, consumer, gather, judge
from runtime.offsets import committed
from runtime.positions import Place
from runtime.settings import Settings
from runtime.topics import Topics
from runtime.unowned import STRATEGY
from schemas.errors import Outage

log = logging.getLogger(__name__)

GROUP: Final = "gateway"
POLL_RECORDS: Final = 8192
_OVERRIDES: Final = {
    **gather(wait_ms=10),
    **STRATEGY,
    # An offset that Kafka does not have is told (`gaps`), never a silent jump.
    "auto.offset.reset": "error",
    # What librdkafka reads ahead is memory too.
    "queued.max.messages.kbytes": 16_384,
    "queued.min.messages": 20_000,
}


class Source:
    """The request topics of all models. Every method but the constructor and `lag` runs in the consumer's thread."""

    def __init__(
        self,
        settings: Settings,
        followers: Mapping[str, str],
        progress: Progress,
        transaction: threading.Lock,
    ) -> None:
        """`followers` says which topic follows each topic that the gateways share: its partitions go to whoever has those of the same
        number. `transaction` is held while a transaction is open: a revocation waits for it.

        Were all of them shared, a gateway that joins would get those that come first by name, idle redrives, and the load would stay.
        """
        self._progress = progress
        self._transaction = transaction
        self._catalogue = Topics(settings)
        self._owned: set[Place] = set()
        """What the group gave to this process, and what follows it."""
        self._gone: set[Place] = set()
        """Those that do not exist."""
        self._paused: set[Place] = set()
        self._stranded = Stranded()
        self._settings = settings
        self._followers = followers
        self._topics = [*followers, *followers.values()]
        self.joined = False
        """Whether the group has assigned partitions, or said that there are none for this process."""
        self.group_metadata: object = None
        """As it was when records were last polled. Fresh metadata after a rebalance would launder stale work."""
        self._open()

    def _open(self) -> None:
        self._opened_with: dict[str, uuid.UUID] = self._catalogue.ids(self._topics)
        self._client: Consumer = consumer(
            self._settings, GROUP, member=str(self._settings.slot), **_OVERRIDES
        )
        self._client.subscribe(
            list(self._followers), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )

    def poll(self, timeout_sec: float, paused: Collection[str]) -> list[Fragment]:
        """Records of all topics but `paused`, by partition. Waits up to `timeout_sec` for the first, and for no second.

        Raises:
            Fenced: another process has this slot.
            KafkaException, Outage: what was read is lost: the caller rewinds.
        """
        self._pause(paused)
        messages = self._client.consume(1, timeout_sec)
        if messages:
            # consume(n) would wait for n: this takes what is there.
            messages += self._client.consume(POLL_RECORDS - 1, 0.0)
        self.group_metadata = self._client.consumer_group_metadata()
        failed = [message for message in messages if message.error() is not None]
        if failed:
            for message in failed:
                error = message.error()
                if error is not None and not self._stranded.take(message):
                    judge(error, f"{GROUP}-{self._settings.slot}")
            messages = [message for message in messages if message.error() is None]
        runs = _by_place(messages)
        if stale := {place[0] for place, run in runs.items() if self._is_stale(place, run)}:
            # Of all its partitions: what was read before a rewind does not follow what is committed.
            self.rewind(stale)
        return [
            self._fragment(assignment, run)
            for place, run in runs.items()
            if place[0] not in stale and (assignment := self._progress.of(*place)) is not None
        ]

    def _is_stale(self, place: Place, messages: list[Message]) -> bool:
        """Whether the topic was recreated, or truncated behind our back."""
        assignment, first = self._progress.of(*place), messages[0].offset() or 0
        if assignment is None or first >= assignment.position:
            return False
        log.warning("%s [%d]: offset %d after %d: starting anew", *place, first, assignment.position)
        return True

    def _fragment(self, assignment: Assignment, messages: list[Message]) -> Fragment:
        last = messages[-1].offset() or 0
        sizes_bytes = list(map(len, messages))
        self._progress.polled(
            assignment, last + 1, len(messages), sum(sizes_bytes), messages[0].timestamp()[1]
        )
        return Fragment(assignment, messages, sizes_bytes)

    def rewind(self, topics: Collection[str] | None = None) -> None:
        """Drop what is held of `topics` (all by default) and read again from the group's committed offsets.

        May be called again after it failed half-way.

        Raises:
            KafkaException, Outage: the committed offsets cannot be read.
        """
        # An open transaction could commit offsets after they were read here, and its rows would be answered twice.
        with self._transaction:
            places = [place for place in self._owned if topics is None or place[0] in topics]
            for place in places:
                self._progress.revoke(*place)
            stale = [p for p in self._client.assignment() if (p.topic, p.partition) in places]
            if stale:
                self._client.incremental_unassign(stale)
            if places:
                self._begin([TopicPartition(*place) for place in places])

    def hold(self, assignment: Assignment) -> None:
        """Give up what is held of a partition that has halted: it stays in Kafka, and is read again once `halted` is taken off."""
        with self._transaction:
            if assignment.ended:
                return
            place = TopicPartition(assignment.topic, assignment.partition)
            self._progress.revoke(assignment.topic, assignment.partition)
            self._client.incremental_unassign([place])
            self._begin([place])
            again = self._progress.of(assignment.topic, assignment.partition)
            if again is not None:
                again.halted, again.oldest_ms = assignment.halted, assignment.oldest_ms

    def recreated(self) -> set[str]:
        """Topics that were deleted and created again since the client was opened."""
        found = self._catalogue.ids(self._topics)
        return {name for name, topic_id in found.items() if self._opened_with.get(name, topic_id) != topic_id}

    def begin_made(self) -> None:
        """Begin what did not exist when it was to be begun, and does now: a topic may be given more partitions before its follower is.

        Raises:
            KafkaException, Outage: Kafka does not tell; to be called again.
        """
        if unbegun := self._unbegun():
            self._begin([TopicPartition(*place) for place in unbegun])

    def gaps(self) -> list[tuple[Assignment, Gap]]:
        """What Kafka does not have of what is to be read: to be told, and then to be passed over. What it has by now is read on.

        Raises:
            KafkaException, Outage: Kafka does not tell; to be called again.
        """
        positions = {(a.topic, a.partition): a.position for a in self._progress.assignments()}
        found = []
        for place, gap in self._stranded.gaps(self._client, positions):
            assignment = self._progress.of(*place)
            if assignment is not None and gap is None:
                self._read_on(assignment)
            elif assignment is not None and gap is not None:
                found.append((assignment, gap))
        return found

    def pass_over(self, assignment: Assignment, gap: Gap) -> None:
        """Read on behind a gap. Where the log was cut there is nothing behind it yet."""
        if not assignment.ended and not gap.cut:
            assignment.position = gap.end
            self._read_on(assignment)

    def _read_on(self, assignment: Assignment) -> None:
        """What is held stays: it was read before."""
        place = assignment.topic, assignment.partition
        there = TopicPartition(*place, assignment.position)
        self._client.incremental_unassign([there])
        self._client.incremental_assign([there])
        self._client.resume([there])
        self._paused.discard(place)
        self._stranded.forget(place)

    def reopen(self) -> None:
        """Begin with a new client. librdkafka goes by leader epochs, and takes a recreated topic's for outdated ones."""
        self._client.close()
        self.joined = False
        with self._transaction:
            for place in self._owned:
                self._progress.revoke(*place)
            self._owned.clear()
            self._paused.clear()
            self._stranded.clear()
        self._open()

    def lag(self, assignment: Assignment) -> int:
        """Records readable and not committed, as far as the client has heard."""
        place = TopicPartition(assignment.topic, assignment.partition)
        _, high = self._client.get_watermark_offsets(place, cached=True)
        return max(0, high - assignment.committed)

    def waiting(self) -> set[Place]:
        """What the group gave to this process and it has not begun to read, or could not go back to. From any thread."""
        return self._unbegun() - self._gone

    def _unbegun(self) -> set[Place]:
        begun = {(assignment.topic, assignment.partition) for assignment in self._progress.assignments()}
        return self._owned - begun

    def close(self) -> None:
        """Leave the group."""
        self._client.close()

    @callback
    def _assigned(self, _client: Consumer, partitions: list[TopicPartition]) -> None:
        self.joined = True
        both = self._with_followers(partitions)
        self._owned |= {(place.topic, place.partition) for place in both}
        if both:
            self._begin(both)

    def _with_followers(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """`partitions` and what follows them. A static member comes back to what it had, also of a model that it no longer knows."""
        known = [place for place in partitions if place.topic in self._followers]
        following = [TopicPartition(self._followers[place.topic], place.partition) for place in known]
        return [*known, *following]

    @callback
    def _revoked(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        # The open transaction is committed or aborted before this returns; what is not in it belongs to the next owner.
        both = self._with_followers(partitions)
        with self._transaction:
            for place in both:
                self._progress.revoke(place.topic, place.partition)
                self._owned.discard((place.topic, place.partition))
                self._paused.discard((place.topic, place.partition))
        assigned = {(place.topic, place.partition) for place in client.assignment()}
        client.incremental_unassign([place for place in both if (place.topic, place.partition) in assigned])

    @callback
    def _lost(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        self.joined = False
        self._revoked(client, partitions)

    def _begin(self, partitions: list[TopicPartition]) -> None:
        there = self._catalogue.places()
        # A topic may have been given more partitions than its follower (`begin_made`); one that was deleted is given up by the next rebalance.
        gone = {(place.topic, place.partition) for place in partitions} - there
        if news := gone - self._gone:
            log.warning("not there: %s", ", ".join(f"{topic} [{number}]" for topic, number in sorted(news)))
        self._gone = (self._gone & self._owned) - there | gone
        partitions = [place for place in partitions if (place.topic, place.partition) not in gone]
        if not partitions:
            return
        found = self._catalogue.ids({place.topic for place in partitions})
        starts = []
        for place in committed(self._client, partitions):
            topic_id = found.get(place.topic)
            if topic_id is None:
                raise Outage(f"topic {place.topic} was there a moment ago and is not now")
            start = place.offset
            of_topic, _, tally = (place.metadata or "").partition(" ")
            if start < 0 or (of_topic and of_topic != str(topic_id)):
                tally = ""
                start, _ = self._client.get_watermark_offsets(
                    TopicPartition(place.topic, place.partition), timeout=REQUEST_TIMEOUT_SEC
                )
            starts.append(TopicPartition(place.topic, place.partition, start))
            self._progress.assign(
                Assignment(place.topic, place.partition, topic_id, start, start, tally=decode_tally(tally))
            )
            self._paused.discard((place.topic, place.partition))
            self._stranded.forget((place.topic, place.partition))
        self._client.incremental_assign(starts)
        # librdkafka remembers a pause across assignments, and `_paused` does not.
        self._client.resume(starts)

    def _pause(self, topics: Collection[str]) -> None:
        """Make the paused partitions those of `topics`, and those that have halted. A pause drops what was fetched ahead, so it is for long waits."""
        wanted = {
            (a.topic, a.partition) for a in self._progress.assignments() if a.topic in topics or a.halted
        }
        if pause := wanted - self._paused:
            self._client.pause([TopicPartition(*place) for place in pause])
        if resume := self._paused - wanted:
            self._client.resume([TopicPartition(*place) for place in resume])
        self._paused = wanted


def _by_place(messages: list[Message]) -> dict[Place, list[Message]]:
    """Records by topic and partition, each in the order in which they were read."""
    places: list[Place] = list(
        zip(map(Message.topic, messages), map(Message.partition, messages), strict=True)  # type: ignore[arg-type]  # a consumed record has both
    )
    found: dict[Place, list[Message]] = {place: [] for place in dict.fromkeys(places)}
    if len(found) == 1:
        return {places[0]: messages}
    for message, place in zip(messages, places, strict=True):
        found[place].append(message)
    return found
