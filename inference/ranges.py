"""A range of a topic that a person names by times or offsets → the offsets that it means, per partition; and its records in batches.

Kafka's time index gives the first offset at or after a time. Where producers set timestamps out of order a range by time is therefore the
offsets between two such places, not exactly the records whose timestamps lie in it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from inference.model import BATCH_BYTES
from runtime.kafka import REQUEST_TIMEOUT_SEC, admin, consumer, judge, topic_ids
from runtime.settings import Settings
from schemas.errors import Outage, UserError

Bound = int | Mapping[int, int] | Literal["earliest", "latest"]
"""A time in milliseconds since 1970, offsets by partition (others are left out), or an end of what there is."""
READ_TIMEOUT_SEC: Final = 60.0
RECORDS: Final = 1024
_POLL_SEC: Final = 0.2
_READER: Final[dict[str, Any]] = {
    "enable.partition.eof": True,
    # An offset that Kafka no longer has is an error, never a silent jump.
    "auto.offset.reset": "error",
    "queued.max.messages.kbytes": 16_384,
}


class Span(msgspec.Struct, frozen=True):
    """Offsets `first` … `end - 1` of one partition."""

    partition: int
    first: int
    end: int


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """Part of a topic. `topic_id` tells it from a later topic of the same name."""

    topic: str
    topic_id: uuid.UUID
    spans: tuple[Span, ...]
    """In order of partition, none of them empty."""

    @property
    def offsets(self) -> int:
        """How many: of records and of transaction markers, which are never delivered."""
        return sum(span.end - span.first for span in self.spans)

    @property
    def bounds(self) -> tuple[str, str]:
        """Both ends as offsets, `partition:offset,…`: the same range whenever it is asked for."""
        firsts = ",".join(f"{span.partition}:{span.first}" for span in self.spans)
        return firsts, ",".join(f"{span.partition}:{span.end}" for span in self.spans)


class _Retained(NamedTuple):
    """What Kafka has of one partition: `low` … `high - 1`, all of it decided (committed or aborted)."""

    low: int
    high: int


def resolve(settings: Settings, reader: Consumer, topic: str, start: Bound, end: Bound) -> Range:
    """The range from `start` up to, not including, `end`. `reader` asks for committed records; what it was assigned is lost.

    Raises:
        UserError: there is no such topic or partition, the range is empty, or Kafka no longer has its beginning.
        Outage, KafkaException: Kafka does not answer.
    """
    topic_id = topic_ids(admin(settings), [topic]).get(topic)
    if topic_id is None:
        raise UserError(f"there is no topic {topic} yet; start the stack with `tidemill up` first")
    retained = _retained(reader, topic)
    firsts = _offsets(reader, topic, retained, start, "--from")
    ends = _offsets(reader, topic, retained, end, "--to")
    _refuse_expired(reader, topic, retained, start, firsts)
    spans = [
        Span(partition, first, ends[partition])
        for partition, first in sorted(firsts.items())
        if first < ends.get(partition, 0)
    ]
    if not spans:
        raise UserError(f"{topic}: the range holds no request; {_said(reader, topic, retained)}")
    return Range(topic=topic, topic_id=topic_id, spans=tuple(spans))


def _retained(reader: Consumer, topic: str) -> dict[int, _Retained]:
    metadata = reader.list_topics(topic, timeout=REQUEST_TIMEOUT_SEC).topics[topic]
    if metadata.error is not None:
        raise KafkaException(metadata.error)
    found = {}
    for partition in sorted(metadata.partitions):
        marks = reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=REQUEST_TIMEOUT_SEC)
        if marks is None:
            raise Outage(f"Kafka: no watermarks of {topic}:{partition}")
        found[partition] = _Retained(*marks)
    return found


def _offsets(
    reader: Consumer, topic: str, retained: dict[int, _Retained], bound: Bound, option: str
) -> dict[int, int]:
    """The offset that `bound` means in each partition that it speaks of."""
    if bound == "earliest":
        return {partition: marks.low for partition, marks in retained.items()}
    if bound == "latest":
        return {partition: marks.high for partition, marks in retained.items()}
    if isinstance(bound, Mapping):
        for partition, offset in bound.items():
            if partition not in retained:
                raise UserError(
                    f"{option}: found partition {partition}, expected one of {', '.join(map(str, retained))}, which {topic} has"
                )
            if offset > retained[partition].high:
                raise UserError(
                    f"{option}: found {partition}:{offset}, but {topic}:{partition} ends at {retained[partition].high}"
                )
        return dict(bound)
    asked = [TopicPartition(topic, partition, bound) for partition in retained]
    found = {}
    for place in reader.offsets_for_times(asked, timeout=REQUEST_TIMEOUT_SEC):
        if place.error is not None:
            raise KafkaException(place.error)
        # A negative offset: no record is that young.
        found[place.partition] = place.offset if place.offset >= 0 else retained[place.partition].high
    return found


def _refuse_expired(
    reader: Consumer, topic: str, retained: dict[int, _Retained], start: Bound, firsts: dict[int, int]
) -> None:
    """A range must not lose its beginning silently. A partition that begins at 0 never lost anything."""
    suspects = [p for p, first in firsts.items() if retained[p].low > 0 and first <= retained[p].low]
    if start == "earliest" or not suspects:
        return
    if isinstance(start, Mapping):
        lost = [p for p in suspects if firsts[p] < retained[p].low]
    elif isinstance(start, int):
        oldest = _oldest_ms(reader, topic, {p: retained[p] for p in suspects})
        lost = [p for p in oldest if start < oldest[p]]
    else:
        return
    if lost:
        raise UserError(
            f"{topic}: the range begins before what Kafka retains; {_said(reader, topic, retained)}; "
            "--from earliest takes all of it"
        )


def _said(reader: Consumer, topic: str, retained: dict[int, _Retained]) -> str:
    """What Kafka retains, for a person."""
    oldest = _oldest_ms(reader, topic, retained)
    parts = [
        f"{partition}:{marks.low} to {partition}:{marks.high} since {_iso(oldest[partition])}"
        for partition, marks in retained.items()
        if partition in oldest
    ]
    return f"retained are {', '.join(parts)}" if parts else "nothing is retained"


def _oldest_ms(reader: Consumer, topic: str, retained: Mapping[int, _Retained]) -> dict[int, int]:
    """Timestamp of the first record of each partition that has one."""
    found: dict[int, int] = {}
    try:
        # One after the other: what one partition has fetched ahead would come before the first record of the next.
        for partition, marks in retained.items():
            if marks.low < marks.high:
                first = _first(reader, TopicPartition(topic, partition, marks.low))
                if first is not None:
                    found[partition] = first.timestamp()[1]
    finally:
        reader.unassign()
    return found


def _first(reader: Consumer, place: TopicPartition) -> Message | None:
    """The first record that can be read at or after a place; None if there is none."""
    reader.assign([place])
    deadline = time.monotonic() + REQUEST_TIMEOUT_SEC
    while time.monotonic() < deadline:
        message = reader.poll(_POLL_SEC)
        if message is None or (message.topic(), message.partition()) != (place.topic, place.partition):
            continue
        error = message.error()
        if error is None:
            return message
        if error.code() == KafkaError._PARTITION_EOF:
            return None
        raise KafkaException(error)
    raise Outage(f"Kafka: {place.topic}: its first records cannot be read")


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def open_reader(settings: Settings) -> Consumer:
    """Reads committed records, in no group that anybody looks at; commits nothing."""
    return consumer(settings, f"replay-{uuid.uuid4()}", **_READER)


def cut(
    reader: Consumer, range_: Range, limit_rows: int, rows_of: Callable[[Message], int] = lambda _: 1
) -> Iterator[list[Message]]:
    """The range in batches of one partition each, in offset order, each ended by the record that reaches `limit_rows` or `BATCH_BYTES`: where
    they are cut follows from the range alone. An empty list: nothing came for a moment.

    Raises:
        UserError: Kafka dropped part of the range.
        Outage: the range cannot be read to its end.
    """
    ends = {span.partition: span.end for span in range_.spans}
    gathered: dict[int, list[Message]] = {partition: [] for partition in ends}
    sizes, rows = dict.fromkeys(ends, 0), dict.fromkeys(ends, 0)
    reader.incremental_assign([TopicPartition(range_.topic, s.partition, s.first) for s in range_.spans])
    came_sec = time.monotonic()
    while ends:
        messages = reader.consume(1, _POLL_SEC)
        if not messages:
            if time.monotonic() > came_sec + READ_TIMEOUT_SEC:
                raise Outage(f"Kafka: {range_.topic} cannot be read to the end of the range")
            yield []
            continue
        for message in [*messages, *reader.consume(RECORDS - 1, 0)]:
            partition, offset, error = message.partition() or 0, message.offset() or 0, message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                _judge(error, range_.topic)
                continue
            if partition not in ends:
                continue
            mine, end = gathered[partition], ends[partition]
            if error is None and offset < end:
                mine.append(message)
                sizes[partition] += len(message)
                rows[partition] += rows_of(message)
            # A transaction's marker at the end is never delivered: what lies behind it, or the end of the topic, tells.
            last = offset >= end - 1 if error is None else offset >= end
            if last:
                del ends[partition]
                reader.incremental_unassign([TopicPartition(range_.topic, partition)])
            if mine and (last or rows[partition] >= limit_rows or sizes[partition] >= BATCH_BYTES):
                gathered[partition], sizes[partition], rows[partition] = [], 0, 0
                yield mine
        came_sec = time.monotonic()


def _judge(error: KafkaError, topic: str) -> None:
    if error.code() == KafkaError._AUTO_OFFSET_RESET:
        raise UserError(f"{topic}: Kafka dropped part of the range while it was replayed: {error.str()}")
    judge(error, "replay")
