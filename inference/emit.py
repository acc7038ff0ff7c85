"""Emit: what a micro-batch came to, cut into the slices of its partitions: predictions, observations, dead letters."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from inference.admit import Admitted
from inference.infer import Answer
from inference.limits import NO_POSITIONS, counted
from inference.observe import observation_rows, observation_values
from inference.predict import id_texts, prediction_values
from inference.progress import DeadLetter, Output, Slice
from runtime.headers import Headers
from schemas.dead_letters import Origin
from schemas.errors import Rejection
from schemas.identity import prediction_ids
from schemas.requests import CONTENT_TYPE, TRACEPARENT
from schemas.spec import ModelSpec
from schemas.topics import ARROW, JSON

JSON_HEADERS: Final[Headers] = [(CONTENT_TYPE, JSON.encode())]
ARROW_HEADERS: Final[Headers] = [(CONTENT_TYPE, ARROW.encode())]

Run = tuple[uuid.UUID, int, int]
"""Topic id, partition and number of consecutive records of a micro-batch."""


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
    """One output a slice. `rejections` has a line for each record that no live arm answered."""
    runs = record_runs(slices, admitted.origins)
    ids = record_ids(admitted, runs)
    values = prediction_values(spec, id_texts(ids), request_ids, accepted, answers, rejections)
    for record, origin in admitted.origins.items():
        values[record] = b'%b,"attempt":%d}' % (values[record][:-1], origin.attempt)
    observations, record_of_row = observation_rows(
        spec, admitted, ids, runs, request_ids, accepted, answers, rejections,
        revision=revision, observed_ms=observed_ms,
    )  # fmt: skip
    outputs = []
    start = 0
    for piece in slices:
        end = start + piece.rows
        if len(slices) == 1:
            mine = observations
        else:
            mine = observations.take(np.flatnonzero((record_of_row >= start) & (record_of_row < end)))
        refused = {record: rejections[record] for record in sorted(rejections) if start <= record < end}
        outputs.append(
            Output(
                predictions=values[start:end],
                keys=admitted.keys[start:end],
                headers={
                    record - start: [*JSON_HEADERS, (TRACEPARENT, parent.encode())]
                    for record, parent in admitted.traceparents.items()
                    if start <= record < end
                },
                observations=observation_values(mine),
                observation_headers=[*ARROW_HEADERS, *trace_headers],
                dead_letters=[
                    DeadLetter(messages[record], rejection, admitted.origins.get(record))
                    for record, rejection in refused.items()
                ],
                reasons=Counter(rejection.reason for rejection in refused.values()),
                rejected=counted(refused, messages, start, pass_until_ms) if refused else NO_POSITIONS,
            )
        )
        start = end
    return outputs


def record_runs(slices: Sequence[Slice], origins: Mapping[int, Origin]) -> list[Run]:
    """Where the records lie, or, of a redriven one, where its original lay."""
    runs: list[Run] = []
    start = 0
    for piece in slices:
        assignment = piece.assignment
        mine = [origins.get(record) for record in range(start, start + piece.rows)] if origins else []
        if any(mine):
            runs += [
                (assignment.topic_id, assignment.partition, 1)
                if origin is None
                else (origin.topic_id, origin.partition, 1)
                for origin in mine
            ]
        else:
            runs.append((assignment.topic_id, assignment.partition, piece.rows))
        start += piece.rows
    return runs


def record_ids(admitted: Admitted, runs: Sequence[Run]) -> NDArray[np.void]:
    """The prediction ids of a micro-batch, in the order of its records."""
    found, start = [], 0
    for topic_id, partition, rows in runs:
        part = slice(start, start + rows)
        row = np.zeros(rows, np.int64)
        found.append(
            prediction_ids(admitted.timestamps_ms[part], topic_id, partition, admitted.offsets[part], row)
        )
        start += rows
    return np.concatenate(found)
