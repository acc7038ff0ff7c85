"""Predictions are written by a template; a reader must find in them what the structs say."""

import uuid

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from features.columns import Columns
from inference.infer import Answer
from inference.predict import id_texts, prediction_values
from inference.router import ServedArm, Share
from inference.versions import Version
from schemas.errors import Rejection
from schemas.events import Arm
from schemas.requests import Prediction, Rejected
from schemas.spec import ModelSpec, decode_spec

HEAD = 'name = "toy"\nmodule = "m:T"\n[features]\nx = { type = "float" }\n'
BINARY = decode_spec('task = "binary"\nclasses = ["no", "100 % \\"yes\\""]\n' + HEAD, "toy")
REGRESSION = decode_spec('task = "regression"\n' + HEAD + '[rollout]\nmetric = "squared_error"', "toy")
IDS = [uuid.UUID(int=i + 1) for i in range(4)]


def answer(spec: ModelSpec, rows: list[int], scores: NDArray[np.float32]) -> Answer:
    state = {"mean": np.zeros(1, np.float32), "std": np.ones(1, np.float32)}
    version = Version("2.1-abc", "2.1", spec, state, {}, scores[:0], 0.0)
    arm = Arm(name="champion", role="live", version="2.1", artifact="2.1-abc")
    columns = Columns(np.zeros((len(rows), 1), np.float32), pa.array([], pa.string()))
    failed = np.isnan(scores[:, 0])
    return Answer(Share(ServedArm(arm, version), np.array(rows), 1.0), columns, scores, failed, 1.0)


def written(
    spec: ModelSpec,
    answers: list[Answer],
    accepted: list[int],
    rejections: dict[int, Rejection],
    request_ids: dict[int, str],
) -> list[Prediction]:
    texts = [str(one).encode() for one in IDS]
    values = prediction_values(spec, texts, request_ids, np.array(accepted), answers, rejections)
    return [msgspec.json.decode(value, type=Prediction) for value in values]


def test_ids_are_written_as_uuids() -> None:
    given = [uuid.uuid4() for _ in range(5)]
    ids = np.frombuffer(b"".join(one.bytes for one in given), dtype="V16")
    assert id_texts(ids) == [str(one).encode() for one in given]


def test_each_record_gets_its_answer_or_its_rejection() -> None:
    scores = np.array([[0.25, 0.75], [1.0, 1e-12], [np.nan, np.nan]], np.float32)
    failed = Rejection("inference_failed", "", "a row", "fails")
    bad = Rejection("wrong_type", "x", "a number", "found a text")
    found = written(
        BINARY,
        [answer(BINARY, [0, 1, 2], scores)],
        [0, 2, 3],
        {1: bad, 3: failed},
        {0: 'r "1" %s', 1: "r-2"},
    )
    yes = '100 % "yes"'
    assert found[0] == Prediction(
        prediction_id=str(IDS[0]), request_id='r "1" %s', label=yes, score=0.75,
        scores={"no": 0.25, yes: 0.75}, model="toy", version="2.1",
    )  # fmt: skip
    assert found[1] == Prediction(
        prediction_id=str(IDS[1]), model="toy", request_id="r-2",
        rejected=Rejected(reason="wrong_type", field="x", expected="a number", message=bad.message),
    )  # fmt: skip
    assert (found[2].label, found[2].score, found[2].request_id) == ("no", 1.0, "")
    assert np.float32(found[2].scores[yes]) == np.float32(1e-12)
    assert found[3].rejected is not None
    assert found[3].rejected.reason == "inference_failed"


@pytest.mark.parametrize("value", [0.0, -1.5, 3.4e38, 1e-45, 123456.78, 1 / 3])
def test_a_regression_is_read_as_the_same_float32(value: float) -> None:
    (first, *_) = written(
        REGRESSION,
        [answer(REGRESSION, [0, 1, 2, 3], np.full((4, 1), value, np.float32))],
        [0, 1, 2, 3],
        {},
        {},
    )
    assert first.score is not None
    assert np.float32(first.score) == np.float32(value)
    assert (first.label, first.scores) == ("", {})
