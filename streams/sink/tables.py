"""Which topic goes into which table, and how its records become rows: data, plus one small function per format.

Arrow and JSON events are handed over unchanged; feedback and dead letters are the two whose rows are made here. `decode` runs as
a record arrives (it tells how many rows there are, which the plan must know), `encode` joins a range's payloads into the body of
one INSERT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Message

from runtime.dead_letters import redriven_from, split
from runtime.headers import pairs
from schemas import dead_letters as names
from schemas import topics
from schemas.arrow import decode_batch
from schemas.errors import Rejection
from schemas.feedback import decode_feedback
from schemas.spec import ModelSpec


class Source(NamedTuple):
    """Where a record comes from, as far as its rows say so."""

    topic_id: UUID
    spec: ModelSpec | None
    """The model's, if the topic belongs to one."""


class Rows(NamedTuple):
    """One record's rows."""

    rows: int
    payload: Any
    table_partitions: frozenset[int] = frozenset()


NO_ROWS: Final = Rows(0, None)


class Table(NamedTuple):
    """One target in ClickHouse."""

    name: str
    format: str
    """ClickHouse's name of the INSERT's format."""
    decode: Callable[[Message, Source], Rows]
    """Raises `Rejection` for a record that is poison."""
    encode: Callable[[list[Any]], bytes]
    idempotent: bool = True
    """A row that is inserted twice replaces itself (ReplacingMergeTree read with FINAL). If not, `inserts` can count a range."""
    pace_sec: float = 1.0
    """Ranges of one partition follow each other no faster, so that merges keep up with the parts. What the loop waits for goes faster."""


def targets(specs: dict[str, ModelSpec]) -> dict[str, tuple[Table, ModelSpec | None]]:
    """Topic → its table, and its model's spec if it belongs to one."""
    found: dict[str, tuple[Table, ModelSpec | None]] = {
        topics.OBSERVATIONS.name: (OBSERVATIONS, None),
        topics.REPLAYS.name: (REPLAYS, None),
        topics.OUTCOMES.name: (OUTCOMES, None),
        topics.DEAD_LETTERS.name: (DEAD_LETTERS, None),
    }
    for topic in _EVENT_TOPICS:
        table = Table(f"internal.{topic.name}", "JSONEachRow", _event, _lines)
        found[topic.name] = (table, None)
    for name, spec in specs.items():
        found[topics.FEEDBACK.for_model(name)] = (FEEDBACK, spec)
        found[topics.FEEDBACK_REDRIVES.for_model(name)] = (FEEDBACK, spec)
    return found


def _arrow(message: Message, _source: Source) -> Rows:
    batch = _batch(message)
    return Rows(batch.num_rows, batch) if batch is not None else NO_ROWS


def _observations(message: Message, _source: Source) -> Rows:
    """The table is partitioned by the month of `observed_at`."""
    batch = _batch(message)
    if batch is None:
        return NO_ROWS
    ends = pc.min_max(batch.column("observed_at").cast(pa.int64())).as_py()
    return Rows(batch.num_rows, batch, frozenset({months(ends["min"]), months(ends["max"])}))


def _batch(message: Message) -> pa.RecordBatch | None:
    """The record's batch; None for a tombstone and for an empty batch."""
    value = message.value()
    if value is None:
        return None
    batch = decode_batch(value)
    return batch if batch.num_rows else None


def months(at_ms: int) -> int:
    """Whole months since 1970, as toYYYYMM tells them apart.

    >>> months(1_760_000_000_000)
    669
    """
    return int(np.datetime64(at_ms, "ms").astype("datetime64[M]").astype(np.int64))


def _arrow_stream(batches: list[pa.RecordBatch]) -> bytes:
    """One stream with one batch. A column that an older writer did not know is null there, and its default in ClickHouse."""
    whole = pa.concat_tables([pa.Table.from_batches([batch]) for batch in batches], promote_options="default")
    whole = whole.combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _event(message: Message, _source: Source) -> Rows:
    value = message.value()
    if value is None:
        return NO_ROWS
    try:
        _OBJECT.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejection("undecodable", "", "a JSON object", str(error)) from None
    return Rows(1, value)


def _feedback(message: Message, source: Source) -> Rows:
    """Invalid feedback is passed over: the labels stage writes its dead letter."""
    if source.spec is None:
        raise TypeError("feedback without a model's spec")
    try:
        feedback = decode_feedback(message.value() or b"", source.spec)
        received_at_ms = _received_at_ms(message, source.spec.name)
    except Rejection:
        return NO_ROWS
    row = {
        "model": source.spec.name,
        "feedback_id": feedback.feedback_id,
        "prediction_id": feedback.prediction_id,
        "request_id": feedback.request_id,
        "kind": feedback.kind,
        "value": _said(feedback.value),
        "name": feedback.name,
        "source": feedback.source,
        "entity": (message.key() or b"").decode("utf-8", "replace"),
        "at_ms": received_at_ms if feedback.at_ms is None else feedback.at_ms,
        "received_at_ms": received_at_ms,
        **_coordinates(message, source),
    }
    return Rows(1, msgspec.json.encode(row))


def _received_at_ms(message: Message, model: str) -> int:
    """The record's timestamp; of a redriven one the original's."""
    if message.topic() != topics.FEEDBACK_REDRIVES.for_model(model):
        return int(message.timestamp()[1])
    return redriven_from(message, topics.FEEDBACK.for_model(model)).timestamp_ms


def _said(value: str | float | bool) -> str:
    """
    >>> _said(4.0), _said(0.25), _said(True), _said("up")
    ('4', '0.25', 'true', 'up')
    """
    if isinstance(value, str):
        return value
    whole = not isinstance(value, bool) and float(value).is_integer()
    return str(int(value)) if whole else msgspec.json.encode(value).decode()


def _dead_letter(message: Message, source: Source) -> Rows:
    """Reason and coordinates only: the original, which may hold personal data, stays in its topic."""
    _, ours = split(pairs(message.headers()), names.DEAD_LETTER_HEADERS)
    row = {
        **{column: ours.get(name, "") for column, name in _DEAD_LETTER_TEXTS.items()},
        **{column: _number(ours.get(name, "")) for column, name in _DEAD_LETTER_NUMBERS.items()},
        "source_topic_id": _uuid_text(ours.get(names.TOPIC_ID, "")),
        "attempt": min(max(_number(ours.get(names.ATTEMPT, "0")), 0), names.MAX_ATTEMPT),
        "size_bytes": _number(ours.get(names.OMITTED_BYTES, ""))
        if names.OMITTED_BYTES in ours
        else len(message.value() or b""),
        **_coordinates(message, source),
    }
    return Rows(1, msgspec.json.encode(row))


_DEAD_LETTER_TEXTS: Final = {
    "reason": names.REASON, "stage": names.STAGE, "message": names.MESSAGE, "field": names.FIELD, "model": names.MODEL,
    "source_topic": names.TOPIC,
}  # fmt: skip
_DEAD_LETTER_NUMBERS: Final = {
    "source_partition": names.PARTITION, "source_offset": names.OFFSET, "timestamp_ms": names.TIMESTAMP_MS,
    "died_at_ms": names.DIED_AT_MS,
}  # fmt: skip


def _number(text_: str) -> int:
    """Anyone may write to the topic, so a header may be missing or nonsense; its row says -1."""
    try:
        return int(text_)
    except ValueError:
        return -1


def _uuid_text(text_: str) -> str:
    try:
        return str(UUID(text_))
    except ValueError:
        return str(UUID(int=0))


def _coordinates(message: Message, source: Source) -> dict[str, object]:
    return {
        "topic_id": str(source.topic_id),
        "partition": message.partition(),
        "offset": message.offset(),
    }


def _lines(values: Iterable[bytes]) -> bytes:
    return b"\n".join(values)


_FRESH_SEC: Final = 0.4
"""Labels are joined with what is in the first two tables, and trained on from there."""
OBSERVATIONS: Final = Table(
    "internal.observations",
    "ArrowStream",
    _observations,
    _arrow_stream,
    idempotent=False,
    pace_sec=_FRESH_SEC,
)
OUTCOMES: Final = Table("internal.outcomes", "ArrowStream", _arrow, _arrow_stream, pace_sec=_FRESH_SEC)
REPLAYS: Final = Table("internal.replays", "ArrowStream", _arrow, _arrow_stream)
FEEDBACK: Final = Table("internal.feedback", "JSONEachRow", _feedback, _lines)
DEAD_LETTERS: Final = Table("internal.dead_letters", "JSONEachRow", _dead_letter, _lines, idempotent=False)
_EVENT_TOPICS: Final = (
    topics.METRICS, topics.DRIFT, topics.ALERTS, topics.RETRAINS, topics.CANDIDATES, topics.ROLLOUTS, topics.ROUTES,
    topics.DEAD_LETTER_DECISIONS,
)  # fmt: skip
