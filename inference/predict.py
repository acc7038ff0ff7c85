"""Answers → predictions: one JSON for each row. A template per class is filled in; numbers become text in one vectorised pass."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from inference.infer import Answer
from schemas.errors import Rejection
from schemas.requests import Prediction, Rejected
from schemas.spec import ModelSpec

_encoder: Final = msgspec.json.Encoder()
_DIGITS: Final = np.array([place for place in range(36) if place not in (8, 13, 18, 23)])


def id_characters(ids: NDArray[np.void]) -> NDArray[np.uint8]:
    """UUIDs as ASCII text, 8-4-4-4-12 hex digits: [n, 36]."""
    texts = np.full((len(ids), 36), ord("-"), np.uint8)
    texts[:, _DIGITS] = np.frombuffer(ids.tobytes().hex().encode(), np.uint8).reshape(len(ids), 32)
    return texts


def id_texts(ids: NDArray[np.void]) -> list[bytes]:
    """UUIDs as ASCII text, 8-4-4-4-12 hex digits."""
    return id_characters(ids).view("S36").ravel().tolist()


def prediction_values(
    spec: ModelSpec,
    ids: list[bytes],
    request_ids: dict[int, str],
    accepted: NDArray[np.int64],
    answers: list[Answer],
    rejections: dict[int, Rejection],
    attempts: Mapping[int, int] = MappingProxyType({}),
) -> list[bytes]:
    """The JSON of each row's prediction or rejection, in the rows' order. `attempts` has the redriven rows."""
    found = [b""] * len(ids)
    for answer in answers:
        if answer.share.served.arm.role != "live":
            continue
        records = accepted[answer.share.rows].tolist()
        everything = len(records) == len(ids)
        mine = ids if everything else [ids[record] for record in records]
        extras = _extras(records, request_ids, attempts) if request_ids or attempts else None
        values = _answered(spec, answer, mine, extras)
        if everything:
            found = values
            continue
        for record, value in zip(records, values, strict=True):
            found[record] = value
    for record, rejection in rejections.items():
        why = Rejected(
            reason=rejection.reason,  # type: ignore[arg-type]  # a Rejection's reason is one of Reason
            field=rejection.field, expected=rejection.expected, message=rejection.message,
        )  # fmt: skip
        found[record] = _encoder.encode(
            Prediction(
                prediction_id=ids[record].decode(),
                model=spec.name,
                request_id=request_ids.get(record, ""),
                rejected=why,
                attempt=attempts.get(record, 0),
            )
        )
    return found


def _answered(spec: ModelSpec, answer: Answer, ids: list[bytes], extras: list[bytes] | None) -> list[bytes]:
    """The JSON of each row of one live answer, in their order. A row that failed gives nonsense, which its rejection replaces."""
    n, outputs = answer.scores.shape
    # The shortest text that reads as the same float32.
    texts = pa.array(answer.scores.ravel()).cast(pa.string()).cast(pa.binary()).to_pylist()
    scores = [texts[output::outputs] for output in range(outputs)]
    if spec.classes:
        best = answer.scores.argmax(axis=1)
        scores.insert(0, [texts[place] for place in (np.arange(n) * outputs + best).tolist()])
        which = best.tolist()
    else:
        which = [0] * n
    templates = _templates(spec, answer.share.served.version.name)
    rows = zip(ids, extras or [b""] * n, *scores, strict=True)
    return [templates[label] % row for label, row in zip(which, rows, strict=True)]


def _templates(spec: ModelSpec, version: str) -> list[bytes]:
    """For each class the JSON of `Prediction` with places for prediction id, what few records have, score and scores."""
    start = b'{"prediction_id":"%b","model":' + _text(spec.name) + b'%b,"version":' + _text(version)
    if not spec.classes:
        return [start + b',"score":%b}']
    scores = b",".join(_text(name) + b":%b" for name in spec.classes)
    return [
        start + b',"label":' + _text(name) + b',"score":%b,"scores":{' + scores + b"}}"
        for name in spec.classes
    ]


def _text(text: str) -> bytes:
    """A JSON text, to be used in a template."""
    return _encoder.encode(text).replace(b"%", b"%%")


def _extras(records: list[int], request_ids: Mapping[int, str], attempts: Mapping[int, int]) -> list[bytes]:
    """What few records have: `,"request_id":…` and `,"attempt":…`."""
    # No JSON holds a raw newline.
    texts = _encoder.encode_lines([request_ids.get(record, "") for record in records]).split(b"\n")
    found = [b',"request_id":' + text if text != b'""' else b"" for text in texts[: len(records)]]
    for place, record in enumerate(records) if attempts else ():
        if record in attempts:
            found[place] += b',"attempt":%d' % attempts[record]
    return found
