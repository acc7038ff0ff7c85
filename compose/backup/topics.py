"""The control topics: those that are kept for ever, for nothing else could bring them back, and the control room's own state.

Routes, decisions, orders, the control room's state and its offsets change together, in one transaction. They are read by several requests,
so the copy is checked as a sequence lock is: no transaction was open and no end or offset had moved before and after. The
control room's counters in `state` change with every label and are left out of the check: only decisions must agree.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition

from compose.backup.chain import Chain
from runtime.headers import pairs
from runtime.kafka import admin, consumer, topic_ids
from runtime.offsets import told
from runtime.positions import Place
from runtime.reader import TopicReader
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer
from schemas.backup import Record, Segment, TopicCopy
from schemas.errors import Outage, UserError
from schemas.topics import STATE, TOPICS, Topic

KEPT: Final = tuple(topic for topic in TOPICS if topic.retention_ms is None and topic is not STATE)
OWN_STATE: Final = b"control/"
"""Keys of the control room in `state`. What the labels stage and the worker keep there speaks of offsets in topics that are not restored."""
READERS: Final = {"control": ("candidates", "commands"), "training": ("retrains",), "majors": ("retrains",)}
"""Groups whose place in the topics is restored with them. The sink starts over: it writes the same rows again, which replace themselves."""
TRIES: Final = 50
_PAUSE_SEC: Final = 0.1
_TRANSACTION_MS: Final = 300_000

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[Record])


class _Marks(NamedTuple):
    """How far everything is."""

    stable: dict[Place, int]
    """End for a read-committed reader."""
    ends: dict[Place, int]
    positions: dict[str, dict[Place, int]]


def export(
    settings: Settings, chain: Chain, base: Mapping[str, TopicCopy], check: bool
) -> tuple[dict[str, TopicCopy], int]:
    """Copy the control topics as they were at one moment; return them and the bytes written.

    A topic that is not compacted only grows: what `base` has of it is not read again.

    Raises:
        Outage: the broker does not answer, or decisions never paused for long enough.
    """
    reader = _Reader(settings)
    try:
        ids = topic_ids(admin(settings), [topic.name for topic in (*KEPT, STATE)])
        before = reader.marks()
        for _ in range(TRIES):
            found = {topic: reader.read(topic.name, *_span(topic, base, ids, before)) for topic in KEPT}
            states = {
                (record.partition, record.key): record
                for record in reader.read(STATE.name, {}, reader.stable(STATE.name), OWN_STATE)
            }
            after = reader.marks()
            if before == after and after.ends == after.stable:
                break
            time.sleep(_PAUSE_SEC)
            before = reader.marks()
        else:
            raise Outage(f"Kafka: the control topics did not rest for a moment in {TRIES} tries; try again")
    finally:
        reader.close()
    copies, written = {}, 0
    for topic, records in [*found.items(), (STATE, list(states.values()))]:
        old = base.get(topic.name) if _grows(topic, base, ids) else None
        segments = list(old.segments) if old else []
        if records:
            content, new = chain.keep(_encoder.encode(records), check=check)
            segments.append(Segment(content=content, records=len(records)))
            written += new
        copies[topic.name] = TopicCopy(
            topic_id=ids[topic.name],
            segments=segments,
            ends={p: end for (name, p), end in after.stable.items() if name == topic.name},
            positions={
                group: {p: offset for (name, p), offset in places.items() if name == topic.name}
                for group, places in after.positions.items()
                if topic.name in READERS[group]
            },
        )
    return copies, written


def load(chain: Chain, copy: TopicCopy) -> list[Record]:
    """A copy's records, oldest first by partition."""
    return [
        record
        for segment in copy.segments
        for record in _decoder.decode(chain.object(segment.content.sha256).read_bytes())
    ]


def restore(settings: Settings, records: Mapping[str, list[Record]], copies: Mapping[str, TopicCopy]) -> int:
    """Write the records and their readers' places in one transaction: all or nothing. Returns how many.

    Raises:
        UserError: a topic holds something already.
    """
    reader = _Reader(settings)
    try:
        for name in records:
            if any(end > 0 for end in reader.ends(name).values()):
                raise UserError(f"topic {name} is not empty: a backup is restored into a new deployment")
    finally:
        reader.close()
    producer = TransactionalProducer(
        settings, "restore", **{"transaction.timeout.ms": _TRANSACTION_MS, "message.timeout.ms": _TRANSACTION_MS}
    )  # fmt: skip
    producer.begin()
    for name, found in records.items():
        for record in found:
            # Keys of `state` are spread by the partitioner; the other topics keep their order, partition by partition.
            partition = -1 if name == STATE.name else record.partition
            producer.produce(
                name, record.value, record.key, list(record.headers), partition, record.timestamp_ms
            )
            producer.poll()
    for group in READERS:
        places = list(_places(group, records, copies))
        if places:
            member = consumer(settings, group)
            try:
                producer.send_offsets(places, member.consumer_group_metadata())
            finally:
                member.close()
    producer.commit()
    producer.close()
    return sum(len(found) for found in records.values())


def _places(
    group: str, records: Mapping[str, list[Record]], copies: Mapping[str, TopicCopy]
) -> Iterator[TopicPartition]:
    """Where the group goes on: a new topic numbers its records from 0, without the gaps of transaction markers."""
    for name in READERS[group]:
        for partition, position in copies[name].positions.get(group, {}).items():
            handled = sum(
                record.partition == partition and record.offset < position for record in records[name]
            )
            yield TopicPartition(name, partition, handled)


def _grows(topic: Topic, base: Mapping[str, TopicCopy], ids: Mapping[str, uuid.UUID]) -> bool:
    """Whether the base's copy is a beginning of the topic."""
    return not topic.compacted and topic.name in base and base[topic.name].topic_id == ids[topic.name]


def _span(
    topic: Topic, base: Mapping[str, TopicCopy], ids: Mapping[str, uuid.UUID], marks: _Marks
) -> tuple[Mapping[int, int], dict[int, int]]:
    """From where to where to read, by partition."""
    begins = base[topic.name].ends if _grows(topic, base, ids) else {}
    return begins, {p: end for (name, p), end in marks.stable.items() if name == topic.name}


class _Reader:
    """Reads what is committed, and where the topics end; belongs to no group."""

    def __init__(self, settings: Settings) -> None:
        self._committed = TopicReader(settings, "backup", **{"fetch.wait.max.ms": 10})
        self._all = TopicReader(settings, "backup-ends", **{"isolation.level": "read_uncommitted"})
        self._groups: dict[str, Consumer] = {group: consumer(settings, group) for group in READERS}

    def close(self) -> None:
        self._committed.close()
        self._all.close()
        for group in self._groups.values():
            group.close()

    def stable(self, topic: str) -> dict[int, int]:
        """Partition → end of what is committed or aborted."""
        return _ends(self._committed, topic)

    def ends(self, topic: str) -> dict[int, int]:
        """Partition → end, open transactions included."""
        return _ends(self._all, topic)

    def marks(self) -> _Marks:
        """How far the topics and their readers are."""
        stable = {(topic.name, p): end for topic in KEPT for p, end in self.stable(topic.name).items()}
        positions = {}
        for group, topics in READERS.items():
            places = [TopicPartition(name, p) for name, p in stable if name in topics]
            found = told(self._groups[group], places)
            positions[group] = {(place.topic, place.partition): max(place.offset, 0) for place in found}
        ends = {(topic.name, p): end for topic in KEPT for p, end in self.ends(topic.name).items()}
        return _Marks(stable, ends, positions)

    def read(
        self, topic: str, begins: Mapping[int, int], ends: Mapping[int, int], prefix: bytes = b""
    ) -> list[Record]:
        """The committed records in between whose key begins with `prefix`, each partition's in order."""
        self._committed.begin({(topic, p): begins.get(p, 0) for p in ends})
        found: dict[int, list[Record]] = {p: [] for p in sorted(ends)}
        for message in self._committed.read_to({(topic, p): end for p, end in ends.items()}):
            partition, offset = message.partition() or 0, message.offset() or 0
            if offset < ends[partition] and (message.key() or b"").startswith(prefix):
                found[partition].append(
                    Record(
                        partition, offset, message.timestamp()[1], message.key(), message.value(), _headers(message)
                    )
                )  # fmt: skip
        self._committed.begin({})
        return [record for records in found.values() for record in records]


def _ends(reader: TopicReader, topic: str) -> dict[int, int]:
    return {partition: bounds.end for (_, partition), bounds in reader.bounds(reader.places(topic)).items()}


def _headers(message: Message) -> list[tuple[str, bytes | None]]:
    return [
        (name, value.encode() if isinstance(value, str) else value)
        for name, value in pairs(message.headers())
    ]
