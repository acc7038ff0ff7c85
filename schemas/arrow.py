"""Arrow schemas of what moves in batches: observations, replays, outcomes, and answers to Arrow requests. One Kafka record is one Arrow IPC stream with one batch.

Each column is listed once, with its ClickHouse type and its meaning; a contract test holds the migrations against this table.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import Rejection

UUID: Final = pa.binary(16)
MS: Final = pa.timestamp("ms", tz="UTC")
F32S: Final = pa.list_(pa.field("item", pa.float32(), nullable=False))
STRINGS: Final = pa.list_(pa.field("item", pa.string(), nullable=False))


class Column(NamedTuple):
    """One column in motion and at rest."""

    name: str
    arrow: pa.DataType
    clickhouse: str
    meaning: str


OBSERVATION_COLUMNS: Final = (
    Column("prediction_id", UUID, "UUID", "Deterministic id of the row (UUIDv7 of its timestamp, topic id, partition, offset, row)"),
    Column("request_id", pa.string(), "String", "The producer's own id of the request, empty if none was given"),
    Column("model", pa.string(), "LowCardinality(String)", "Model name"),
    Column("entity", pa.string(), "String", "The request record's key: tenant, session, account"),
    Column("role", pa.string(), "LowCardinality(String)", "live: the answer the producer got; shadow: a copy nobody was answered with"),
    Column("arm", pa.string(), "LowCardinality(String)", "Arm of the route table: champion, challenger, major, baseline; empty for a rejection"),
    Column("version", pa.string(), "LowCardinality(String)", "Version that computed the scores, major.update; empty for a rejection"),
    Column("propensity", pa.float32(), "Float32", "Probability with which this arm was chosen for this entity"),
    Column("route_revision", pa.uint64(), "UInt64", "Revision of the route table that chose the arm"),
    Column("topic_id", UUID, "UUID", "Kafka's UUID of the request topic"),
    Column("partition", pa.int32(), "Int32", "Partition of the request"),
    Column("offset", pa.int64(), "Int64", "Offset of the request"),
    Column("row", pa.int32(), "Int32", "Row within the request record"),
    Column("status", pa.string(), "LowCardinality(String)", "answered or rejected"),
    Column("reason", pa.string(), "LowCardinality(String)", "Why it was rejected, empty if answered"),
    Column("requested_at", MS, "DateTime64(3, 'UTC')", "Timestamp of the request record"),
    Column("observed_at", MS, "DateTime64(3, 'UTC')", "When the gateway had the scores"),
    Column("label", pa.string(), "LowCardinality(String)", "Predicted class, empty for a regression or a rejection"),
    Column("score", pa.float32(), "Float32", "Probability of the predicted class, or the regression's value; NaN for a rejection"),
    Column("scores", F32S, "Array(Float32)", "Probability per class in the spec's order, or the one value of a regression"),
    Column("numbers", F32S, "Array(Float32)", "Numeric features in the spec's order, before scaling; NaN is missing"),
    Column("texts", STRINGS, "Array(String)", "Category and text features in the spec's order"),
    Column("segments", STRINGS, "Array(LowCardinality(String))", "Segments of the row that the spec declares, feature=value"),
    Column("infer_ms", pa.float32(), "Float32", "How long Triton took for the micro-batch"),
    Column("trace_id", pa.string(), "String", "W3C trace id of the request, empty if it carried none"),
    Column("attempt", pa.uint8(), "UInt8", "0 for an ordinary request, n for its n-th redrive"),
)  # fmt: skip

REPLAY_COLUMNS: Final = (
    Column("run_id", pa.string(), "LowCardinality(String)", "The replay: name and hash of model, artifact and offsets"),
    *(c._replace(meaning="Always replay") if c.name == "role" else c for c in OBSERVATION_COLUMNS),
)  # fmt: skip
"""A replayed row is an observation: what is added there is here too."""

OUTCOME_COLUMNS: Final = (
    Column("outcome_id", UUID, "UUID", "Deterministic id of (prediction, arm, feedback, revision): repeats count once"),
    Column("prediction_id", UUID, "UUID", "The prediction that the label belongs to"),
    Column("model", pa.string(), "LowCardinality(String)", "Model name"),
    Column("entity", pa.string(), "String", "Entity of the request"),
    Column("role", pa.string(), "LowCardinality(String)", "live or shadow"),
    Column("arm", pa.string(), "LowCardinality(String)", "Arm that predicted"),
    Column("version", pa.string(), "LowCardinality(String)", "Version that predicted"),
    Column("feedback_id", pa.string(), "String", "The feedback that carried the label"),
    Column("revision", pa.uint32(), "UInt32", "0 for the first label of the prediction, then 1, 2, …"),
    Column("truth", pa.string(), "LowCardinality(String)", "The label: a class; empty for a regression"),
    Column("truth_value", pa.float64(), "Float64", "The label of a regression, NaN for a classification"),
    Column("label", pa.string(), "LowCardinality(String)", "Predicted class"),
    Column("scores", F32S, "Array(Float32)", "Predicted probabilities, or the value of a regression"),
    Column("correct", pa.uint8(), "UInt8", "1 if label = truth, else 0; 0 for a regression"),
    Column("loss", pa.float32(), "Float32", "Log loss of the truth, or squared error"),
    Column("brier", pa.float32(), "Float32", "Multi-class Brier score; 0 for a regression"),
    Column("previous_truth", pa.string(), "LowCardinality(String)", "Truth of the revision before, empty at revision 0"),
    Column("previous_loss", pa.float32(), "Float32", "Loss of the revision before, 0 at revision 0"),
    Column("previous_brier", pa.float32(), "Float32", "Brier score of the revision before, 0 at revision 0"),
    Column("segments", STRINGS, "Array(LowCardinality(String))", "Segments of the row, feature=value"),
    Column("requested_at", MS, "DateTime64(3, 'UTC')", "Timestamp of the request"),
    Column("observed_at", MS, "DateTime64(3, 'UTC')", "When the gateway had the scores"),
    Column("labeled_at", MS, "DateTime64(3, 'UTC')", "Event time of the label"),
    Column("joined_at", MS, "DateTime64(3, 'UTC')", "When label and prediction were joined"),
    Column("feedback_topic_id", UUID, "UUID", "Kafka's UUID of the feedback topic"),
    Column("feedback_partition", pa.int32(), "Int32", "Partition of the feedback"),
    Column("feedback_offset", pa.int64(), "Int64", "Offset of the feedback"),
)  # fmt: skip

PREDICTION_COLUMNS: Final = (
    Column("prediction_id", pa.string(), "", "Deterministic id of the row, as text; feedback names it"),
    Column("request_id", pa.string(), "", "The row's own id of the request, empty if none was given"),
    Column("model", pa.string(), "", "Model name"),
    Column("status", pa.string(), "", "answered or rejected"),
    Column("version", pa.string(), "", "Version that answered, major.update; empty for a rejection"),
    Column("arm", pa.string(), "", "Arm of the route table that answered; empty for a rejection"),
    Column("propensity", pa.float32(), "", "Probability with which this arm was chosen for the record's key; 1 for a rejection"),
    Column("label", pa.string(), "", "The most probable class; empty for a regression or a rejection"),
    Column("score", pa.float32(), "", "Probability of the label, or the regression's value; NaN for a rejection"),
    Column("scores", F32S, "", "Probability per class in the spec's order, or the one value of a regression; no values for a rejection"),
    Column("reason", pa.string(), "", "Why the row was rejected, empty if answered"),
    Column("field", pa.string(), "", "Column of the offending value, empty for the whole row or record"),
    Column("expected", pa.string(), "", "What would have been accepted, at most 100 characters"),
    Column("message", pa.string(), "", "One line: what is wrong, at most 100 characters"),
    Column("attempt", pa.uint8(), "", "0 for an ordinary request, n for its n-th redrive"),
)  # fmt: skip
"""The answer to an Arrow request: a row for each of its rows, in their order. It is in motion only, so without ClickHouse types."""


def schema_of(columns: tuple[Column, ...]) -> pa.Schema:
    """The Arrow schema of `columns`; no column is nullable."""
    return pa.schema([pa.field(column.name, column.arrow, nullable=False) for column in columns])


OBSERVATIONS: Final = schema_of(OBSERVATION_COLUMNS)
REPLAYS: Final = schema_of(REPLAY_COLUMNS)
OUTCOMES: Final = schema_of(OUTCOME_COLUMNS)
PREDICTIONS: Final = schema_of(PREDICTION_COLUMNS)


def encode_batch(batch: pa.RecordBatch) -> bytes:
    """One Kafka record's value: an Arrow IPC stream with one batch."""
    return batch_buffer(batch).to_pybytes()  # type: ignore[no-any-return]


def batch_buffer(batch: pa.RecordBatch) -> pa.Buffer:
    """The same, where a Kafka client takes it: of megabytes a copy less."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def part_of(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """Some of its columns."""
    return pa.schema([schema.field(name) for name in names])


def rows_where(batch: pa.RecordBatch, mask: pa.BooleanArray) -> pa.RecordBatch:
    """The rows that `mask` marks. Mostly that is all of them, and `filter` would copy each."""
    return batch if pc.all(mask, skip_nulls=False).as_py() else batch.filter(mask)


def only_text(column: pa.StringArray) -> str | None:
    """The text that every row of the column holds; None if they differ, or if there are none.

    Most columns of most batches hold one, and to see that takes a tenth of the time of encoding or comparing them.
    """
    rows = len(column)
    if not rows or column.null_count:
        return None
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + rows + 1]
    first, size = int(offsets[0]), int(offsets[1] - offsets[0])
    if int(offsets[-1]) - first != rows * size or not (np.diff(offsets) == size).all():
        return None
    if not size:
        return ""
    text = np.frombuffer(column.buffers()[2], np.uint8)[first : first + rows * size]
    # Equal to itself moved by one row: all rows are the first.
    return text[:size].tobytes().decode() if np.array_equal(text[size:], text[:-size]) else None


def texts_in(column: pa.StringArray) -> list[str]:
    """The different texts of a column, in the order in which they come."""
    only = only_text(column)
    return pc.unique(column).to_pylist() if only is None else [only]


def rows_with(batch: pa.RecordBatch, **wanted: str) -> pa.RecordBatch:
    """The rows whose columns hold these texts."""
    masks = []
    for name, text in wanted.items():
        only = only_text(batch[name])
        if only is None:
            masks.append(pc.equal(batch[name], text))
        elif only != text:
            return batch.slice(0, 0)
    return rows_where(batch, reduce(pc.and_, masks)) if masks else batch


def decode_batch(value: bytes, wanted: pa.Schema | None = None) -> pa.RecordBatch:
    """The batch in one Kafka record's value; its buffers point into `value`.

    Raises:
        Rejection: it is no such batch, or has not all columns of `wanted` in their types. Anyone may write to any topic.
    """
    try:
        with pa.ipc.open_stream(value) as reader:
            batch = reader.read_next_batch()
        batch.validate()
    except (pa.ArrowInvalid, OSError, StopIteration) as error:
        raise Rejection("undecodable", "", "an Arrow IPC stream", str(error).partition("\n")[0]) from None
    if wanted is None:
        return batch
    if absent := set(wanted.names).difference(batch.schema.names):
        raise Rejection(
            "undecodable", "", "a batch with all columns", f"it lacks {', '.join(sorted(absent))}"
        )
    for field in wanted:
        found = batch.schema.field(field.name).type
        if found != field.type:
            raise Rejection(
                "undecodable",
                field.name,
                "a batch with columns of their types",
                f"expected {field.type}, found {found}",
            )
    return batch
