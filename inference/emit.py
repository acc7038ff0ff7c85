"""Emit: what a micro-batch came to, cut into the slices of its partitions: predictions, observations, dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final

import msgspec
import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from inference.admit import Admitted
from inference.infer import Answer
from inference.limits import NO_POSITIONS, counted
from inference.observe import observation_rows
from inference.predict import id_texts, prediction_values
from inference.predict_arrow import prediction_rows
from inference.progress import DeadLetter, Observed, Output, Slice
from inference.rows import Rows
from runtime.headers import Headers
from schemas.arrow import encode_batch
from schemas.dead_letters import Origin
from schemas.errors import Rejection
from schemas.formats import MSGPACK_TYPE, Format
from schemas.identity import Run, prediction_ids
from schemas.requests import CONTENT_TYPE, TRACEPARENT, Prediction
from schemas.spec import ModelSpec
from schemas.topics import ARROW

ARROW_HEADERS: Final[Headers] = [(CONTENT_TYPE, ARROW.encode())]
HEADERS: Final[dict[Format, Headers]] = {
    "json": [],  # as it is without: a header costs as much time as the record, and a fifth of its bytes
    "msgpack": [(CONTENT_TYPE, MSGPACK_TYPE.encode())],
    "arrow": ARROW_HEADERS,
}
_packer: Final = msgspec.msgpack.Encoder()
_predictions: Final = msgspec.json.Decoder(Prediction)


def emit(
    spec: ModelSpec,
    slices: Sequence[Slice],
    messages: Sequence[Message],
    admitted: Admitted,
    accepted: NDArray[np.int64],
    answers: list[Answer],
    rejections: dict[int, Rejection],
    request_ids: dict[int, str],
    *,
    revision: int,
    observed_ms: int,
    trace_headers: Headers,
    pass_until_ms: int = 0,
) -> list[Output]:
    """One output a slice. Of `accepted`, `rejections` and `request_ids` the numbers are of rows; `rejections` has a line for each
    row that no live arm answered."""
    rows = admitted.rows
    runs = record_runs(slices, admitted.origins)
    ids = row_ids(admitted, runs)
    values = _values(spec, admitted, ids, request_ids, accepted, answers, rejections)
    batch, row_of = observation_rows(
        spec, admitted, ids, runs, request_ids, accepted, answers, rejections,
        revision=revision, observed_ms=observed_ms,
    )  # fmt: skip
    records = list(accumulate((piece.records for piece in slices), initial=0))
    bounds = rows.first[records]
    observed = Observed(batch, row_of, bounds, [*ARROW_HEADERS, *trace_headers])
    row_bytes = batch.nbytes / max(1, int(bounds[-1]))
    outputs = []
    shares = zip(pairwise(records), pairwise(bounds.tolist()), strict=True)
    for place, ((start, end), (first, last)) in enumerate(shares):
        refused = {row: rejections[row] for row in sorted(rejections) if first <= row < last}
        outputs.append(
            Output(
                predictions=values[start:end],
                keys=admitted.keys[start:end],
                headers={
                    record - start: _headers(admitted, record)
                    for record in sorted(admitted.traceparents.keys() | admitted.formats.keys())
                    if start <= record < end
                },
                observed=observed,
                place=place,
                observed_bytes=round(row_bytes * (last - first)),
                dead_letters=[
                    DeadLetter(messages[record], rejection, admitted.origins.get(record))
                    for record, rejection in _by_record(rows, refused).items()
                ],
                reasons=Counter(rejection.reason for rejection in refused.values()),
                rejected=counted(refused, rows.record, messages, first, pass_until_ms)
                if refused
                else NO_POSITIONS,
            )
        )
    return outputs


def _values(
    spec: ModelSpec,
    admitted: Admitted,
    ids: NDArray[np.void],
    request_ids: dict[int, str],
    accepted: NDArray[np.int64],
    answers: list[Answer],
    rejections: dict[int, Rejection],
) -> list[bytes]:
    """The prediction of each record, in the record's format."""
    rows, formats = admitted.rows, admitted.formats
    attempts = rows.spread({record: origin.attempt for record, origin in admitted.origins.items()})
    arrow = {record for record, name in formats.items() if name == "arrow"}
    values: list[bytes] = []
    if len(arrow) < len(admitted.values):
        values = prediction_values(spec, id_texts(ids), request_ids, accepted, answers, rejections, attempts)
    if not formats:
        return values
    batch = None
    if arrow:
        batch = prediction_rows(
            spec, ids, request_ids, accepted, answers, rejections, admitted.attempts[rows.record]
        )
    found = []
    for record in range(len(admitted.values)):
        first, last = int(rows.first[record]), int(rows.first[record + 1])
        if batch is not None and record in arrow:
            found.append(encode_batch(batch.slice(first, last - first)))
        elif formats.get(record) == "msgpack":
            found.append(_packed(values[first]))
        else:
            found.append(values[first])
    return found


def _packed(value: bytes) -> bytes:
    """A prediction's JSON as MessagePack."""
    return _packer.encode(_predictions.decode(value))


def _headers(admitted: Admitted, record: int) -> Headers:
    headers = HEADERS[admitted.formats.get(record, "json")]
    parent = admitted.traceparents.get(record)
    return [*headers, (TRACEPARENT, parent.encode())] if parent else headers


def _by_record(rows: Rows, refused: Mapping[int, Rejection]) -> dict[int, Rejection]:
    """Why a record is a dead letter: of an Arrow record the first bad row says it, and how many there are. `refused` is in order."""
    if rows.single:
        return dict(refused)
    bad = Counter(int(rows.record[row]) for row in refused)
    found: dict[int, Rejection] = {}
    for row, why in refused.items():
        record = int(rows.record[row])
        of = int(rows.first[record + 1] - rows.first[record])
        if of == 1:
            found[record] = why
        elif record not in found:
            detail = f"row {rows.within[row]}, the first of {bad[record]} bad ones among {of}: {why.detail or why.reason}"
            found[record] = Rejection(why.reason, why.field, why.expected, detail)
    return found


def record_runs(slices: Sequence[Slice], origins: Mapping[int, Origin]) -> list[Run]:
    """Where the records lie, or, of a redriven one, where its original lay."""
    runs: list[Run] = []
    start = 0
    for piece in slices:
        assignment = piece.assignment
        mine = [origins.get(record) for record in range(start, start + piece.records)] if origins else []
        if any(mine):
            runs += [
                (assignment.topic_id, assignment.partition, 1)
                if origin is None
                else (origin.topic_id, origin.partition, 1)
                for origin in mine
            ]
        else:
            runs.append((assignment.topic_id, assignment.partition, piece.records))
        start += piece.records
    return runs


def row_ids(admitted: Admitted, runs: Sequence[Run]) -> NDArray[np.void]:
    """The prediction ids of a micro-batch, in the order of its rows; `runs` are of records."""
    rows = admitted.rows
    if not rows.single:
        ends = rows.first[np.cumsum([0, *(records for _, _, records in runs)])]
        counts = np.diff(ends).tolist()
        runs = [
            (topic_id, partition, count) for (topic_id, partition, _), count in zip(runs, counts, strict=True)
        ]
    return prediction_ids(
        admitted.timestamps_ms[rows.record], runs, admitted.offsets[rows.record], rows.within
    )
