"""The public client on a real broker."""

from __future__ import annotations

import os
import uuid

import numpy as np
import pytest

from runtime.headers import pairs, text
from runtime.settings import Settings
from schemas.arrow import decode_batch
from schemas.errors import Outage, UnknownModel, UserError
from schemas.feedback import decode_feedback
from schemas.spec import decode_spec
from tests.client.conftest import MODEL, SPEC
from tests.reader import written
from tidemill import Client

pytestmark = pytest.mark.stack


def test_a_request_is_answered(client: Client) -> None:
    answer = client.ask(MODEL, {"x": 0.9}, key="someone", request_id="mine")
    assert (answer.label, answer.score, answer.request_id, answer.version) == ("red", 0.9, "mine", "1.0")
    assert answer.rejected is None


def test_whoever_sent_a_broken_record_gets_its_rejection(client: Client) -> None:
    answer = client.ask(MODEL, b'{"x": ')
    assert answer.rejected is not None
    assert answer.rejected.message == "faulty: DecodeError"


def test_a_request_knows_its_predictions_id_once_it_is_sent(client: Client) -> None:
    with client.predictions(MODEL) as reader:
        sent = [client.produce(MODEL, {"x": n / 10}, key=str(n)) for n in range(10)]
        client.flush()
        answers = reader.wait_for([each.prediction_id for each in sent])
    assert [answer.label for answer in answers] == ["blue"] * 6 + ["red"] * 4


def test_a_batch_is_a_prediction_per_row_in_few_records(client: Client, settings: Settings) -> None:
    run = uuid.uuid4().hex
    columns = {
        "x": np.array([0.1, 0.9, 0.2, 0.8, 0.7], np.float32),
        "request_id": [f"{run}-{i}" for i in range(5)],
    }
    with client.predictions(MODEL) as reader:
        sent = client.produce_batch(
            MODEL, columns, key="a", timestamp_ms=1_700_000_000_000, rows_per_record=2
        )
        assert sent.prediction_ids == [""] * 5
        client.flush()
        answers = reader.wait_for(sent.prediction_ids)
    assert sent.rows == 5
    assert [answer.request_id for answer in answers] == columns["request_id"]
    assert [answer.label for answer in answers] == ["blue", "red", "blue", "red", "red"]
    mine = [value for key, _, value in _records(settings, f"requests.{MODEL}") if key == b"a"]
    assert [decode_batch(value).num_rows for value in mine] == [2, 2, 1]


def test_columns_that_make_no_table_are_refused(client: Client) -> None:
    with pytest.raises(UserError, match="columns: not a table"):
        client.produce_batch(MODEL, {"x": [0.1, 0.9], "request_id": ["a"]})
    with pytest.raises(UserError, match="1 rows take"):
        client.produce_batch(MODEL, {"text": ["a" * 5_000_000]})
    assert client.produce_batch(MODEL, {"x": []}).rows == 0


def test_retained_predictions_can_be_read_from_the_start(client: Client) -> None:
    wanted = client.ask(MODEL, {"x": 0.9})
    with client.predictions(MODEL, from_end=False) as reader:
        assert any(answer.prediction_id == wanted.prediction_id for answer in reader)


@pytest.mark.parametrize(
    ("said", "kind", "value"),
    [
        ({"label": "red"}, "label", "red"),
        ({"rating": 4}, "rating", 4),
        ({"thumb": "up"}, "thumb", "up"),
        ({"correction": "blue"}, "correction", "blue"),
        ({"comment": "good"}, "comment", "good"),
        ({"signal": ("dwell_sec", 2.5)}, "signal", 2.5),
    ],
)
def test_what_is_said_arrives_as_valid_feedback(
    client: Client, settings: Settings, said: dict[str, object], kind: str, value: object
) -> None:
    request_id = uuid.uuid4().hex
    client.feedback(MODEL, request_id=request_id, key="someone", at_ms=5, **said)  # type: ignore[arg-type]
    client.flush()
    found = [
        feedback
        for _, _, raw in _records(settings, f"feedback.{MODEL}")
        if (feedback := decode_feedback(raw, decode_spec(SPEC, "SPEC"))).request_id == request_id
    ]
    assert [(each.kind, each.value, each.at_ms) for each in found] == [(kind, value, 5)]
    assert found[0].name == ("dwell_sec" if kind == "signal" else "")


def test_feedback_says_one_thing_about_one_prediction(client: Client) -> None:
    with pytest.raises(UserError, match="expected exactly one of label, rating"):
        client.feedback(MODEL, request_id="a", label="red", rating=4)
    with pytest.raises(UserError, match="either prediction_id or request_id"):
        client.feedback(MODEL, label="red")


def test_an_unknown_model_is_one_line_with_those_that_are_known(client: Client) -> None:
    with pytest.raises(UnknownModel, match=r"no model 'colors'.*expected one of colour"):
        client.produce("colors", {"x": 1})


def test_what_is_no_json_and_what_is_too_large_is_refused_at_once(client: Client) -> None:
    with pytest.raises(UserError, match="not a JSON value"):
        client.produce(MODEL, {"x": object()})
    with pytest.raises(UserError, match="too large"):
        client.produce(MODEL, b" " * 9_000_000)


def test_a_record_that_the_broker_refuses_is_told_by_flush(client: Client) -> None:
    # Random, or it would shrink below the limit.
    client.feedback(MODEL, request_id="r", comment=os.urandom(3_000_000).hex())
    with pytest.raises(Outage, match="not delivered"):
        client.flush()


def test_a_trace_goes_on_with_the_record(client: Client, settings: Settings) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    client.produce(MODEL, {"x": 0.5}, key="traced", traceparent=parent)
    client.flush()
    headers = [headers for key, headers, _ in _records(settings, f"requests.{MODEL}") if key == b"traced"]
    assert headers == [{"traceparent": parent}]


def test_no_broker_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.REQUEST_TIMEOUT_SEC", 0.5)
    with pytest.raises(Outage, match=r"no Kafka broker answers at 127\.0\.0\.1:1"):
        Client(bootstrap="127.0.0.1:1").produce(MODEL, {"x": 1})


def _records(settings: Settings, topic: str) -> list[tuple[bytes | None, dict[str, str], bytes]]:
    """Everything that is in a topic now: key, headers, value."""
    found = []
    for message in written(settings, topic):
        headers = pairs(message.headers())
        found.append(
            (message.key(), {name: text(headers, name) for name, _ in headers}, message.value() or b"")
        )
    return found
