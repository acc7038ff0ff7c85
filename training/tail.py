"""The ends of `outcomes` and `observations`, in memory: what ClickHouse need not be asked for, and may not have yet.

It begins where the sink's group has committed: what is below that is in ClickHouse, what is above comes here. So ClickHouse, asked once
after the beginning, and this together miss nothing. Features are a cache: one that is not here (any more) is in ClickHouse.
"""

from __future__ import annotations

import logging
import time
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from features.columns import Columns
from runtime.kafka import REQUEST_TIMEOUT_SEC, consumer
from runtime.positions import SINK_GROUP, Place
from runtime.reader import TopicReader
from runtime.settings import Settings
from schemas import arrow
from schemas.errors import Outage, Rejection
from schemas.spec import ModelSpec
from schemas.topics import OBSERVATIONS, OUTCOMES
from training.chunks import Chunks
from training.joined import Joined, joined

log = logging.getLogger(__name__)

FEATURE_ROWS: Final = 200_000
FEATURE_BYTES: Final = 64 * 1024 * 1024
"""Of one model's two generations together."""
OUTCOME_ROWS: Final = 100_000
"""Of a model that nobody asks for: more, and it is no longer followed."""
READ_WITHIN_SEC: Final = 1.0
STANDING_READS: Final = 3
"""So often in a row a partition may not move although there is more: then the client will not come further."""
_RECORDS: Final = 200
_WAIT_SEC: Final = 0.01
_OUTCOME_COLUMNS: Final = ("prediction_id", "revision", "truth", "truth_value", "label", "loss")
_READ: Final = {
    OBSERVATIONS.name: arrow.part_of(
        arrow.OBSERVATIONS, ["model", "role", "status", "prediction_id", "numbers", "texts"]
    ),
    OUTCOMES.name: arrow.part_of(
        arrow.OUTCOMES, ["model", "role", "requested_at", "joined_at", *_OUTCOME_COLUMNS]
    ),
}


class Tail:
    """A consumer by assignment, in a group of its own that commits nothing. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        # Only asks for the group's offsets: it never subscribes, so it is no member.
        self._sink: Consumer = consumer(settings, SINK_GROUP)
        self._reader = TopicReader(settings, "training-tail", **{"queued.max.messages.kbytes": 16 * 1024})
        self._standing: dict[Place, int] = {}
        """Reads in which a partition has not moved, though it ends further on."""
        self._models: dict[str, _Model] = {}

    def follow(self, spec: ModelSpec) -> None:
        """Begin (again) for `spec`: from now on everything that is not in ClickHouse yet is, or will be, here.

        Others that are followed get some outcomes a second time.

        Raises:
            Outage: the broker does not answer.
        """
        places = [
            place for topic in (OUTCOMES.name, OBSERVATIONS.name) for place in self._reader.places(topic)
        ]
        try:
            confirmed = self._sink.committed(
                [TopicPartition(*place) for place in places], timeout=REQUEST_TIMEOUT_SEC
            )
        except KafkaException as error:
            raise Outage(f"Kafka does not tell how far the sink is: {error.args[0].str()}") from error
        starts = {}
        for place in confirmed:
            if place.error is not None:
                raise Outage(f"Kafka does not tell how far the sink is: {place.error.str()}")
            starts[place.topic, place.partition] = max(place.offset, 0)
        self._models[spec.name] = _Model(spec)
        self._standing.clear()
        self._reader.begin(starts)

    def follows(self, spec: ModelSpec) -> bool:
        """Whether nothing that concerns `spec` was passed over since `follow`."""
        known = self._models.get(spec.name)
        return known is not None and known.spec == spec

    def read(self) -> None:
        """Take over what there is, without waiting."""
        while self._models and (messages := self._reader.take(_RECORDS)):
            self._take(messages)

    def read_to_end(self) -> None:
        """Take over everything that was committed before this call; what a slow broker has not given in time comes with the next.

        Raises:
            Outage: the broker does not answer, or gives nothing time after time.
        """
        self.read()
        ends = {place: bounds.end for place, bounds in self._reader.bounds(self._reader.positions).items()}
        before = dict(self._reader.positions)
        deadline = time.monotonic() + READ_WITHIN_SEC
        while (behind := self._reader.behind(ends)) and time.monotonic() < deadline:
            self._take(self._reader.take(_RECORDS, _WAIT_SEC))
        self._standing = {
            place: self._standing.get(place, 0) + 1
            for place in behind
            if self._reader.positions[place] == before[place]
        }
        for place, reads in self._standing.items():
            if reads >= STANDING_READS:
                raise Outage(
                    f"Kafka: {place[0]}:{place[1]} gives nothing from offset {before[place]} on, and ends at {ends[place]}"
                )

    def outcomes(self, spec: ModelSpec) -> list[Joined]:
        """What was joined since this was asked last."""
        model = self._models[spec.name]
        found, model.outcomes, model.outcome_rows = model.outcomes, [], 0
        return [joined(spec, table, table["prediction_id"].to_pylist()) for table in found]

    def features(self, spec: ModelSpec, ids: list[bytes]) -> tuple[Columns, list[int]]:
        """The features of `ids` and the positions in `ids` for which there are any here, in ascending order."""
        return self._models[spec.name].features(ids)

    def close(self) -> None:
        """Let go."""
        self._reader.close()
        self._sink.close()

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            topic = message.topic() or ""
            try:
                batch = arrow.decode_batch(message.value() or b"", _READ[topic])
            except Rejection as error:
                # No part of ours wrote it. The sink halts on it, keeps it and tells people.
                log.error("%s:%s:%s is passed over: %s", topic, message.partition(), message.offset(), error)
            else:
                self._add(topic, batch)

    def _add(self, topic: str, batch: pa.RecordBatch) -> None:
        live = pc.equal(batch.column("role"), "live")
        if topic == OBSERVATIONS.name:  # One record is of one model.
            model = self._models.get(batch.column("model")[0].as_py()) if batch.num_rows else None
            if model is not None:
                answered = pc.equal(batch.column("status"), "answered")
                model.observe(batch.filter(pc.and_(live, answered)))
            return
        for name in self._models.keys() & set(batch.column("model").unique().to_pylist()):
            model = self._models[name]
            model.join(batch.filter(pc.and_(live, pc.equal(batch.column("model"), name))))
            if model.outcome_rows > OUTCOME_ROWS:
                del self._models[name]


class _Model:
    """What is here of one model."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.outcomes: list[pa.Table] = []
        self.outcome_rows = 0
        self._young, self._old = _Features(spec), _Features(spec)

    def join(self, rows: pa.RecordBatch) -> None:
        times = {name: rows.column(f"{name}_at").cast(pa.int64()) for name in ("requested", "joined")}
        columns = {name: rows.column(name) for name in _OUTCOME_COLUMNS}
        self.outcomes.append(pa.table(columns | {f"{name}_ms": time for name, time in times.items()}))
        self.outcome_rows += rows.num_rows

    def observe(self, rows: pa.RecordBatch) -> None:
        if not rows.num_rows:
            return
        try:
            columns = Columns.from_lists(rows.column("numbers"), rows.column("texts"), self.spec)
        except ValueError:
            return  # asked under another spec: ClickHouse has it, for whoever can use it
        self._young.add(rows.column("prediction_id").to_pylist(), columns)
        if self._young.full:
            self._old, self._young = self._young, _Features(self.spec)

    def features(self, ids: list[bytes]) -> tuple[Columns, list[int]]:
        parts, positions = [], []
        for features in (self._young, self._old):
            wanted = [position for position, key in enumerate(ids) if key in features.places]
            positions += wanted
            parts.append(
                features.rows.take(
                    np.array([features.places[ids[position]] for position in wanted], np.int64)
                )
            )
        ascending = np.argsort(positions, kind="stable")
        found = [positions[place] for place in ascending]
        # A redriven request may be in both.
        once = [place for place, position in enumerate(found) if not place or found[place - 1] != position]
        return Columns.concat(parts).take(ascending[once]), [found[place] for place in once]


class _Features:
    """One generation."""

    def __init__(self, spec: ModelSpec) -> None:
        self.places: dict[bytes, int] = {}
        """Prediction id → number of its row."""
        self.rows = Chunks(spec)
        self._size_bytes = 0

    @property
    def full(self) -> bool:
        return self.rows.rows >= FEATURE_ROWS // 2 or self._size_bytes >= FEATURE_BYTES // 2

    def add(self, ids: list[bytes], columns: Columns) -> None:
        self.places.update(zip(ids, range(self.rows.rows, self.rows.rows + len(ids)), strict=True))
        self.rows.append(columns)
        self._size_bytes += columns.numbers.nbytes + columns.texts.nbytes
