"""Feedback: what becomes known of a prediction after it was made."""

from __future__ import annotations

import math
import re
import uuid
from typing import Final, Literal

import msgspec

from schemas.errors import Rejection
from schemas.identity import id_text, name_bytes
from schemas.spec import ModelSpec

Kind = Literal["label", "rating", "thumb", "correction", "comment", "signal"]
MAX_TEXT_CHARS: Final = 10_000
_CANONICAL: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
"""Ids as our own answers have them, which need not be taken apart and put together again."""


class Feedback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One piece of feedback on one prediction, named by `prediction_id` or by the producer's `request_id`."""

    kind: Kind
    value: str | float | bool
    """label and correction: a class (or a number for a regression); rating: 1 to 5; thumb: "up" or "down";
    comment: text; signal: any number or text."""
    prediction_id: str = ""
    request_id: str = ""
    feedback_id: str = ""
    """Repeats with the same id count once. By default a hash of what is said about which prediction."""
    at_ms: int | None = None
    """When it became known (milliseconds since 1970, UTC); the record's timestamp by default. Newer revises older."""
    name: str = ""
    """Which signal."""
    source: str = ""
    """Who says so: a person, a process."""


def decode_feedback(value: bytes, spec: ModelSpec) -> Feedback:
    """The feedback in one record's `value`, checked, with `feedback_id` filled in.

    Raises:
        Rejection: names the field and what was expected.
    """
    try:
        feedback = msgspec.json.decode(value, type=Feedback)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        raise Rejection("wrong_type", path.rstrip("`").lstrip("."), "", text) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejection("undecodable", "", "a JSON object", f"not JSON: {error}") from None
    if bool(feedback.prediction_id) == bool(feedback.request_id):
        raise Rejection("missing_field", "prediction_id", "either prediction_id or request_id")
    if feedback.prediction_id and not _CANONICAL(feedback.prediction_id):
        try:
            canonical = str(uuid.UUID(feedback.prediction_id))
        except ValueError:
            raise Rejection(
                "wrong_type", "prediction_id", "a UUID", f"found {feedback.prediction_id[:60]!r}"
            ) from None
        feedback = msgspec.structs.replace(feedback, prediction_id=canonical)
    if feedback.at_ms is not None and not 0 <= feedback.at_ms < 1 << 48:
        raise Rejection(
            "bad_timestamp", "at_ms", "milliseconds since 1970 within 48 bits", f"found {feedback.at_ms}"
        )
    _check_value(feedback, spec)
    if not feedback.feedback_id:
        said = (
            feedback.prediction_id,
            feedback.request_id,
            feedback.kind,
            feedback.name,
            feedback.value,
            feedback.at_ms,
        )
        feedback = msgspec.structs.replace(
            feedback, feedback_id=id_text(name_bytes("feedback", spec.name, *said))
        )
    return feedback


def _check_value(feedback: Feedback, spec: ModelSpec) -> None:
    value = feedback.value
    if feedback.kind in ("label", "correction"):
        if spec.task == "regression":
            if isinstance(value, bool | str) or not math.isfinite(value):
                raise Rejection("wrong_type", "value", "a finite number", _found(value))
        elif value not in spec.classes:
            raise Rejection("unknown_category", "value", f"one of {', '.join(spec.classes)}", _found(value))
    elif feedback.kind == "rating":
        if isinstance(value, bool | str) or value not in (1, 2, 3, 4, 5):
            raise Rejection("out_of_range", "value", "a rating of 1, 2, 3, 4 or 5", _found(value))
    elif feedback.kind == "thumb":
        if value not in ("up", "down"):
            raise Rejection("unknown_category", "value", "up or down", _found(value))
    elif feedback.kind == "comment":
        if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT_CHARS:
            raise Rejection(
                "wrong_type", "value", f"a text of 1 to {MAX_TEXT_CHARS} characters", _found(value)
            )
    elif not feedback.name:
        raise Rejection("missing_field", "name", "the signal's name")


def _found(value: object) -> str:
    return f"found {str(value)[:60]!r}"
