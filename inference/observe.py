"""Answers → observations: Arrow columns as they will lie in ClickHouse. No Python per row."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.segments import segments
from inference.admit import Admitted
from inference.infer import Answer
from inference.progress import Observed
from inference.rows import Rows
from runtime.telemetry import trace_id
from schemas.arrow import F32S, MS, OBSERVATIONS, STRINGS, UUID, batch_buffer
from schemas.errors import Rejection
from schemas.identity import Run
from schemas.spec import ModelSpec
from schemas.topics import OBSERVATION_BYTES

DATE_TIME_64_MAX_MS: Final = 10_413_791_999_999
"""2299-12-31 23:59:59.999, the last that ClickHouse's DateTime64 holds."""
RECORD_LIMIT_BYTES: Final = OBSERVATION_BYTES - 64 * 1024
"""Leaves room for key, headers and framing."""


def observation_rows(
    spec: ModelSpec,
    admitted: Admitted,
    ids: NDArray[np.void],
    runs: Sequence[Run],
    request_ids: dict[int, str],
    accepted: NDArray[np.int64],
    answers: list[Answer],
    rejections: dict[int, Rejection],
    *,
    revision: int,
    observed_ms: int,
) -> tuple[pa.RecordBatch, NDArray[np.int64]]:
    """The observations of a micro-batch, live and shadow, and the row that each of them is of."""
    lengths = [records for _, _, records in runs]
    n = len(admitted.values)
    of_row = _OfRow(
        rows=admitted.rows,
        ids=ids,
        request_ids=None
        if not request_ids
        else pa.array([request_ids.get(i, "") for i in range(len(ids))], pa.string()),
        entities=pa.array(admitted.entities, pa.string()),
        topic_ids=np.repeat(np.array([topic.bytes for topic, _, _ in runs], dtype="V16"), lengths),
        partitions=np.repeat(np.array([partition for _, partition, _ in runs], np.int32), lengths),
        offsets=admitted.offsets,
        requested_ms=np.clip(admitted.timestamps_ms, 0, DATE_TIME_64_MAX_MS),
        attempts=admitted.attempts,
        trace_ids=None
        if not admitted.traceparents
        else pa.array([trace_id(admitted.traceparents.get(i, "")) for i in range(n)], pa.string()),
    )
    blocks, found = [], []
    for answer in answers:
        which = accepted[answer.share.rows]
        blocks.append(_answered(spec, of_row, which, answer, revision, observed_ms))
        found.append(which)
    if rejections:
        decided = [accepted[a.share.rows] for a in answers if a.share.served.arm.role == "live"]
        refused = np.setdiff1d(
            np.fromiter(rejections, np.int64, len(rejections)), np.concatenate(decided or [accepted[:0]])
        )
        if len(refused):
            reasons = [rejections[row].reason for row in refused.tolist()]
            blocks.append(_refused(spec, of_row, refused, reasons, revision, observed_ms))
            found.append(refused)
    if len(blocks) == 1:
        return blocks[0], found[0]
    return pa.concat_batches(blocks), np.concatenate(found)


@dataclass(frozen=True, eq=False)
class _OfRow:
    """What is known of each row before it is answered: ids and request ids by row, all else by record."""

    rows: Rows
    ids: NDArray[np.void]
    request_ids: pa.StringArray | None
    entities: pa.StringArray
    topic_ids: NDArray[np.void]
    partitions: NDArray[np.int32]
    offsets: NDArray[np.int64]
    requested_ms: NDArray[np.int64]
    attempts: NDArray[np.uint8]
    trace_ids: pa.StringArray | None

    def columns(self, which: NDArray[np.int64]) -> dict[str, pa.Array]:
        n = len(which)
        # Nothing is to be chosen where all rows are wanted, each the only one of its record: the usual case.
        everything = n == len(self.ids)
        one_to_one = everything and self.rows.single
        records: Any = slice(None) if one_to_one else self.rows.record[which]
        return {
            "prediction_id": _uuids(self.ids if everything else self.ids[which]),
            "request_id": _strings(self.request_ids, None if everything else which, n),
            "entity": _strings(self.entities, None if one_to_one else records, n),
            "topic_id": _uuids(self.topic_ids[records]),
            "partition": pa.array(self.partitions[records]),
            "offset": pa.array(self.offsets[records]),
            "row": pa.array(self.rows.within[which].astype(np.int32)),
            "requested_at": _ms(self.requested_ms[records]),
            "trace_id": _strings(self.trace_ids, None if one_to_one else records, n),
            "attempt": pa.array(self.attempts[records]),
        }


def _answered(
    spec: ModelSpec,
    of_row: _OfRow,
    which: NDArray[np.int64],
    answer: Answer,
    revision: int,
    observed_ms: int,
) -> pa.RecordBatch:
    n = len(which)
    served = answer.share.served
    failed = answer.failed
    scores = answer.scores
    numbers, texts = answer.columns.as_lists()
    best = scores.argmax(axis=1)
    some_failed = bool(failed.any())
    # A failed row has no scores: an empty list, not NaNs.
    widths = np.where(failed, 0, scores.shape[1]).astype(np.int32)
    score_lists = pa.ListArray.from_arrays(
        pa.array(np.concatenate([np.zeros(1, np.int32), np.cumsum(widths, dtype=np.int32)])),
        pa.array(scores[~failed].ravel() if some_failed else scores.ravel()), type=F32S,
    )  # fmt: skip
    labels = pa.array([*(spec.classes or [""]), ""], pa.string())
    places = np.where(failed, len(labels) - 1, best) if some_failed else best
    return _batch(
        of_row.columns(which)
        | {
            "model": constant(spec.name, n),
            "role": constant(served.arm.role, n),
            "arm": constant(served.arm.name, n),
            "version": constant(served.version.name, n),
            "propensity": pa.array(np.full(n, answer.share.propensity, np.float32)),
            "route_revision": pa.array(np.full(n, revision, np.uint64)),
            "status": _either(failed, "rejected", "answered", some_failed),
            "reason": _either(failed, "inference_failed", "", some_failed),
            "observed_at": _ms(np.full(n, observed_ms, np.int64)),
            "label": labels.take(pa.array(places)),
            "score": pa.array(np.where(failed, np.float32(np.nan), scores[np.arange(n), best])),
            "scores": score_lists,
            "numbers": numbers,
            "texts": texts,
            "segments": segments(spec, answer.columns),
            "infer_ms": pa.array(np.full(n, answer.infer_ms, np.float32)),
        }
    )


def _refused(
    spec: ModelSpec,
    of_row: _OfRow,
    which: NDArray[np.int64],
    reasons: list[str],
    revision: int,
    observed_ms: int,
) -> pa.RecordBatch:
    n = len(which)
    return _batch(
        of_row.columns(which)
        | {
            "model": constant(spec.name, n),
            "role": constant("live", n),
            "arm": constant("", n),
            "version": constant("", n),
            "propensity": pa.array(np.ones(n, np.float32)),
            "route_revision": pa.array(np.full(n, revision, np.uint64)),
            "status": constant("rejected", n),
            "reason": pa.array(reasons, pa.string()),
            "observed_at": _ms(np.full(n, observed_ms, np.int64)),
            "label": constant("", n),
            "score": pa.array(np.full(n, np.nan, np.float32)),
            "scores": pa.array([[]] * n, F32S),
            "numbers": pa.array([[]] * n, F32S),
            "texts": pa.array([[]] * n, STRINGS),
            "segments": pa.array([[]] * n, STRINGS),
            "infer_ms": pa.array(np.zeros(n, np.float32)),
        }
    )


def shared_values(observed: Observed, places: Sequence[int]) -> list[pa.Buffer]:
    """The Kafka values of the slices at these places of a micro-batch. Mostly these are all of them, and nothing is copied."""
    batch, row_of, bounds = observed.batch, observed.row_of, observed.bounds
    if len(places) < len(bounds) - 1:
        mine = np.isin(np.searchsorted(bounds, row_of, side="right") - 1, places)
        batch, row_of = batch.filter(pa.array(mine)), row_of[mine]
    return observation_values(batch, row_of)


def observation_values(batch: pa.RecordBatch, row_of: NDArray[np.int64]) -> list[pa.Buffer]:
    """One Kafka value, or as many as it takes to keep each below the topic's limit; `row_of` as `observation_rows` told it.

    What the arms said of one row stays together: whoever reads the record sees all of them, or none.
    """
    # What is larger as columns than a record may be need not be encoded to know it.
    if batch.num_rows <= 1 or batch.nbytes <= RECORD_LIMIT_BYTES:
        value = batch_buffer(batch)
        if batch.num_rows <= 1 or len(value) <= RECORD_LIMIT_BYTES:
            return [value]
    return [value for half in _halves(batch, row_of) for value in observation_values(*half)]


def _halves(
    batch: pa.RecordBatch, row_of: NDArray[np.int64]
) -> list[tuple[pa.RecordBatch, NDArray[np.int64]]]:
    """Two parts with about as many rows. Of one arm, whose rows lie in order, they are no copies."""
    rows = np.unique(row_of)
    # One row whose arms are too large together is the exception: each arm may still be small enough alone.
    first = row_of < rows[len(rows) // 2] if len(rows) > 1 else np.arange(len(row_of)) < len(row_of) // 2
    count = int(np.count_nonzero(first))
    if first[:count].all():
        return [(batch.slice(0, count), row_of[:count]), (batch.slice(count), row_of[count:])]
    return [(batch.filter(pa.array(half)), row_of[half]) for half in (first, ~first)]


def _batch(columns: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([columns[name] for name in OBSERVATIONS.names], schema=OBSERVATIONS)


@functools.lru_cache(maxsize=32)
def constant(text: str, n: int) -> pa.Array:
    """`text`, n times."""
    if not text:
        # Half of the columns of most batches, and made in a tenth of the time.
        return pa.Array.from_buffers(
            pa.string(), n, [None, pa.py_buffer(bytes(4 * (n + 1))), pa.py_buffer(b"")]
        )
    return pa.repeat(pa.scalar(text, pa.string()), n)


def _ms(values: NDArray[np.int64]) -> pa.Array:
    return pa.Array.from_buffers(MS, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _either(which: NDArray[np.bool_], yes: str, no: str, some: bool) -> pa.Array:
    return (
        pa.array([no, yes], pa.string()).take(pa.array(which.astype(np.int8)))
        if some
        else constant(no, len(which))
    )


def _strings(texts: pa.StringArray | None, chosen: NDArray[np.int64] | None, n: int) -> pa.Array:
    if texts is None:
        return constant("", n)
    return texts if chosen is None else texts.take(pa.array(chosen))


def _uuids(ids: NDArray[np.void]) -> pa.Array:
    return pa.Array.from_buffers(UUID, len(ids), [None, pa.py_buffer(np.ascontiguousarray(ids))])
