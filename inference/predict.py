"""Answers → predictions: one JSON for each record, in one pass."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.infer import Answer
from schemas.errors import Rejection
from schemas.requests import Prediction, Rejected
from schemas.spec import ModelSpec

_encoder: Final = msgspec.json.Encoder()
_DIGITS: Final = np.array([place for place in range(36) if place not in (8, 13, 18, 23)])


def id_texts(ids: NDArray[np.void]) -> list[str]:
    """UUIDs as text, 8-4-4-4-12 hex digits."""
    digits = np.frombuffer(ids.tobytes().hex().encode(), np.uint8).reshape(len(ids), 32)
    texts = np.full((len(ids), 36), ord("-"), np.uint32)
    texts[:, _DIGITS] = digits
    return texts.view("U36").ravel().tolist()


def prediction_values(
    spec: ModelSpec,
    ids: list[str],
    request_ids: dict[int, str],
    accepted: NDArray[np.int64],
    answers: list[Answer],
    rejections: dict[int, Rejection],
) -> list[bytes]:
    """The JSON of each record's prediction or rejection, in the records' order."""
    found: list[Prediction | None] = [None] * len(ids)
    classes = spec.classes
    given = request_ids.get
    name = spec.name
    for answer in answers:
        if answer.share.served.arm.role != "live":
            continue
        version = answer.share.served.version.name
        records = accepted[answer.share.rows].tolist()
        rows = answer.scores.tolist()
        if not classes:
            for record, (value,) in zip(records, rows, strict=True):
                found[record] = Prediction(
                    prediction_id=ids[record],
                    model=name,
                    request_id=given(record, ""),
                    version=version,
                    score=value,
                )
            continue
        best = answer.scores.argmax(axis=1).tolist()
        for record, row, top in zip(records, rows, best, strict=True):
            found[record] = Prediction(
                prediction_id=ids[record], model=name, request_id=given(record, ""), version=version,
                label=classes[top], score=row[top], scores=dict(zip(classes, row)),  # noqa: B905  # equally long by the check in `triton`; strict costs
            )  # fmt: skip
    for record, rejection in rejections.items():
        why = Rejected(
            reason=rejection.reason,  # type: ignore[arg-type]  # a Rejection's reason is one of Reason
            field=rejection.field, expected=rejection.expected, message=rejection.message,
        )  # fmt: skip
        found[record] = Prediction(
            prediction_id=ids[record], model=name, request_id=given(record, ""), rejected=why
        )
    # One call for all; no JSON holds a raw newline.
    return _encoder.encode_lines(found).split(b"\n")[: len(found)]
