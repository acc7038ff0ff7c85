"""Requests in MessagePack and Arrow, through a gateway: answered in their own format, a row each, exactly once."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from compose.embedded.stack import Stack
from runtime.settings import Settings
from schemas.arrow import PREDICTIONS, decode_batch, encode_batch
from schemas.formats import ARROW_TYPE, MSGPACK_TYPE
from schemas.identity import prediction_id
from schemas.requests import Prediction
from tests.inference.serving import (
    FEATURES,
    Gateway,
    arm,
    gateway,
    readers,
    request,
    route,
    send,
    topic_id,
    version,
)
from tests.waiting import until

pytestmark = pytest.mark.stack
ARROW = [("content-type", ARROW_TYPE.encode())]
MSGPACK = [("content-type", MSGPACK_TYPE.encode())]


@pytest.fixture(scope="module")
def settings(infrastructure: Stack) -> Settings:
    settings = infrastructure.settings
    route(settings, arm(version(settings, "1.0")))
    return settings


@pytest.fixture(scope="module")
def running(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway that the tests share, until the last one kills it."""
    with gateway(settings, tmp_path_factory.mktemp("gateway")) as process:
        process.wait_ready()
        yield process


def rows(n: int, seed: int = 0, **columns: Any) -> bytes:
    values = np.random.default_rng(seed).random((n, len(FEATURES)), dtype=np.float32)
    found: dict[str, Any] = {name: values[:, i] for i, name in enumerate(FEATURES)} | columns
    return encode_batch(pa.record_batch({name: pa.array(column) for name, column in found.items()}))


def test_each_format_is_answered_in_itself(settings: Settings, running: Gateway) -> None:
    with readers(settings) as read:
        sent = send(
            settings,
            [
                {"key": b"k", "value": request()},
                {"key": b"k", "value": msgspec.msgpack.encode({"features": FEATURES, "request_id": "m-1"}), "headers": MSGPACK},
                {"key": b"k", "value": rows(3, request_id=["a-1", "", "a-3"]), "headers": ARROW},
                {"key": b"k", "value": b"\xc1", "headers": MSGPACK},
            ],
        )  # fmt: skip
        found = sorted(read.predictions.until(4), key=lambda m: m.offset() or 0)
        observed = sorted(read.observations(6), key=lambda row: (row["offset"], row["row"]))
        (letter,) = read.dead_letters.until(1)
    types = [dict(m.headers() or []).get("content-type") for m in found]
    assert types == [None, MSGPACK_TYPE.encode(), ARROW_TYPE.encode(), MSGPACK_TYPE.encode()]
    as_json = json.loads(found[0].value() or b"")
    packed = msgspec.msgpack.decode(found[1].value() or b"", type=Prediction)
    batch = decode_batch(found[2].value() or b"")
    refused = msgspec.msgpack.decode(found[3].value() or b"", type=Prediction)
    assert (packed.label, packed.score, packed.request_id) == (as_json["label"], as_json["score"], "m-1")
    assert refused.rejected is not None
    assert (refused.rejected.reason, letter.offset() is not None) == ("undecodable", True)
    assert batch.schema == PREDICTIONS
    assert batch.column("request_id").to_pylist() == ["a-1", "", "a-3"]
    assert batch.column("arm").to_pylist() == ["champion"] * 3
    assert [(row["offset"], row["row"]) for row in observed] == [
        (sent[0].offset, 0), (sent[1].offset, 0), *((sent[2].offset, row) for row in range(3)), (sent[3].offset, 0),
    ]  # fmt: skip
    ids = [
        as_json["prediction_id"],
        packed.prediction_id,
        *batch.column("prediction_id").to_pylist(),
        refused.prediction_id,
    ]
    assert ids == [str(uuid.UUID(bytes=row["prediction_id"])) for row in observed]
    assert [row["scores"] for row in observed[2:5]] == batch.column("scores").to_pylist()
    topic = topic_id(settings)
    stamp = found[2].timestamp()  # the answer's own; the request's is in the id
    assert stamp is not None
    asked_ms = int(observed[2]["requested_at"].timestamp() * 1000)
    assert ids[3] == str(prediction_id(asked_ms, topic, sent[2].partition, sent[2].offset, 1))


def test_bad_rows_of_an_arrow_record_are_refused_alone_and_dead_lettered_once(
    settings: Settings, running: Gateway
) -> None:
    period = np.full(100, 0.5, np.float32)
    period[[17, 40]] = np.nan, 7
    value = rows(100, period=period)
    with readers(settings) as read:
        (sent,) = send(settings, [{"key": b"k", "value": value, "headers": ARROW}])
        (answer,) = read.batches(1)
        observed = read.observations(100)
        (letter,) = read.dead_letters.until(1)
    bad = [
        (row, found["reason"], found["field"])
        for row, found in enumerate(answer)
        if found["status"] == "rejected"
    ]
    assert bad == [(17, "not_finite", "period"), (40, "out_of_range", "period")]
    assert all(np.isfinite(found["score"]) for row, found in enumerate(answer) if row not in (17, 40))
    assert answer[17]["scores"] == []
    assert {row["row"] for row in observed if row["status"] == "rejected"} == {17, 40}
    headers = {
        name: (text or b"").decode()
        for name, text in dict(letter.headers() or []).items()
        if not isinstance(text, str)
    }
    assert letter.value() == value
    assert headers["tidemill-offset"] == str(sent.offset)
    assert (headers["tidemill-reason"], headers["tidemill-field"]) == ("not_finite", "period")
    assert "row 17, the first of 2 bad ones among 100" in headers["tidemill-message"]


def test_many_arrow_records_are_answered_once_and_in_order_across_a_kill(
    settings: Settings, running: Gateway, tmp_path: Path
) -> None:
    sizes = [1, 7, 1500, 300, 1, 2048] * 20
    records = [
        {"key": b"k%d" % (i % 8), "value": rows(size, i, request_id=[f"{i}-{r}" for r in range(size)]), "headers": ARROW}
        for i, size in enumerate(sizes)
    ]  # fmt: skip
    with readers(settings) as read:
        running.process.send_signal(signal.SIGSTOP)  # or it might be through before the last one is sent
        send(settings, records)
        running.process.send_signal(signal.SIGCONT)
        until(read.predictions.read, "the first answers")
        running.kill()
        assert len(read.predictions.read()) < len(sizes)
        with gateway(settings, tmp_path):
            answers = read.batches(len(sizes))
            observed = read.observations(sum(sizes))
    found = [row["request_id"] for answer in answers for row in answer]
    assert len(set(found)) == sum(sizes)
    for answer in answers:
        record = answer[0]["request_id"].partition("-")[0]
        assert [row["request_id"] for row in answer] == [f"{record}-{r}" for r in range(sizes[int(record)])]
    assert {uuid.UUID(row["prediction_id"]).bytes for answer in answers for row in answer} == {
        row["prediction_id"] for row in observed
    }
