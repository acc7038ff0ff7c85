"""Feedback is checked against the model's spec; repeats have the same id."""

from __future__ import annotations

import msgspec
import pytest

from schemas.errors import Rejection
from schemas.feedback import decode_feedback
from schemas.spec import ModelSpec, decode_spec
from tests.schemas.test_spec import SOUND

PREDICTION = "018bcfe5-6800-7f79-bed3-ce1ec5325dbe"


@pytest.fixture
def spec() -> ModelSpec:
    return decode_spec(SOUND, "test")


def encoded(**fields: object) -> bytes:
    return msgspec.json.encode({"prediction_id": PREDICTION, "kind": "label", "value": "up", **fields})


@pytest.mark.parametrize(
    ("value", "reason", "field"),
    [
        (b"{", "undecodable", ""),
        (b"[1]", "wrong_type", ""),
        (encoded(kind="rating", value=9), "out_of_range", "value"),
        (encoded(kind="rating", value=True), "out_of_range", "value"),
        (encoded(value="sideways"), "unknown_category", "value"),
        (encoded(kind="thumb", value="left"), "unknown_category", "value"),
        (encoded(kind="comment", value=""), "wrong_type", "value"),
        (encoded(kind="signal", value=1), "missing_field", "name"),
        (encoded(kind="shout"), "wrong_type", "kind"),
        (encoded(prediction_id="7"), "wrong_type", "prediction_id"),
        (encoded(request_id="r"), "missing_field", "prediction_id"),
        (encoded(prediction_id=""), "missing_field", "prediction_id"),
        (encoded(at_ms=1 << 48), "bad_timestamp", "at_ms"),
        (encoded(surprise=1), "wrong_type", ""),
    ],
)
def test_bad_feedback_is_rejected_with_its_field(
    spec: ModelSpec, value: bytes, reason: str, field: str
) -> None:
    with pytest.raises(Rejection) as caught:
        decode_feedback(value, spec)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_the_same_said_twice_has_one_id_and_another_label_another(spec: ModelSpec) -> None:
    first, again, other = (decode_feedback(encoded(value=value), spec) for value in ("up", "up", "down"))
    assert first.feedback_id == again.feedback_id != other.feedback_id


def test_an_upper_case_id_is_the_same_prediction(spec: ModelSpec) -> None:
    assert decode_feedback(encoded(prediction_id=PREDICTION.upper()), spec).prediction_id == PREDICTION
