"""Records of all formats in one micro-batch: what comes out of them, without services."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any, cast

import msgspec
import numpy as np
import pyarrow as pa
from confluent_kafka import Message

from features.columns import Columns
from inference.admit import admit
from inference.emit import emit
from inference.headers import said
from inference.infer import Answer
from inference.model import Fragment, Model, Taken
from inference.observe import shared_values
from inference.progress import Assignment, Output, Progress
from inference.router import ServedArm, Share
from inference.versions import Version
from schemas.arrow import decode_batch, encode_batch
from schemas.events import Arm
from schemas.formats import ARROW_TYPE, MSGPACK_TYPE
from schemas.identity import prediction_id
from schemas.spec import decode_spec

SPEC = decode_spec(
    'name = "toy"\ntask = "binary"\nclasses = ["no", "yes"]\nmodule = "m:T"\n[features]\nx = { type = "float", max = 100 }\n'
    "[serve]\nmax_batch_rows = 8\n",
    "toy",
)
TOPIC_ID = uuid.UUID(int=7)
STAMP_MS = 1_700_000_000_000


def record(offset: int, value: bytes, kind: str = "", partition: int = 0) -> Message:
    headers = [("content-type", kind.encode())] if kind else None
    return Message(
        topic="requests.toy", partition=partition, offset=offset, key=b"k", value=value,
        timestamp=(1, STAMP_MS + offset), headers=cast("Any", headers),
    )  # fmt: skip


def rows(*x: float | None) -> bytes:
    return encode_batch(pa.record_batch({"x": pa.array(x, pa.float32())}))


def taken(messages: list[Message], model: Model) -> tuple[Progress, list[list[Taken]]]:
    """The micro-batches that a model makes of the records of one partition."""
    progress = Progress()
    assignment = Assignment("requests.toy", 0, TOPIC_ID, 0, 0)
    progress.assign(assignment)

    async def main() -> list[list[Taken]]:
        model.put(Fragment(assignment, messages, list(map(len, messages))))
        found = []
        while batch := model.take(progress):
            found.append(batch)
        return found

    return progress, asyncio.run(main())


def emitted(batch: list[Taken], model: Model) -> tuple[Output, list[dict[str, Any]]]:
    """The output of a micro-batch that is one slice, whose rows a version answered with (1 - x/100, x/100); its observations."""
    ((piece, messages, _, _),) = batch
    admitted = admit(SPEC, messages, said(messages), max(map(len, messages)))
    decoded = model.decoder.decode_all(admitted)
    share_of_yes = decoded.columns.numbers[:, 0] / np.float32(100)
    scores = np.stack([1 - share_of_yes, share_of_yes], axis=1)
    state = {"mean": np.zeros(1, np.float32), "std": np.ones(1, np.float32)}
    version = Version("1.0-a", "1.0", SPEC, state, {}, scores[:0], 0.0)
    share = Share(
        ServedArm(Arm(name="champion", role="live", version="1.0", artifact="1.0-a"), version),
        np.arange(len(scores)), 1.0,
    )  # fmt: skip
    columns = Columns(decoded.columns.numbers, decoded.columns.texts)
    answers = [Answer(share, columns, scores, np.zeros(len(scores), bool), 1.0)] if len(scores) else []
    (output,) = emit(
        SPEC, [piece], messages, admitted, decoded.accepted, answers, decoded.rejections, decoded.request_ids,
        revision=1, observed_ms=STAMP_MS, trace_headers=[],
    )  # fmt: skip
    values = shared_values(output.observed, [output.place])
    observed = [row for value in values for row in decode_batch(value).to_pylist()]
    return output, sorted(observed, key=lambda row: (row["offset"], row["row"]))


def test_micro_batches_are_cut_by_rows_and_never_inside_a_record() -> None:
    model = Model(SPEC)
    messages = [
        record(0, b"{}"), record(1, rows(*range(5)), ARROW_TYPE), record(2, rows(*range(3)), ARROW_TYPE),
        record(3, rows(*range(30)), ARROW_TYPE), record(4, b"no arrow", ARROW_TYPE), record(5, b"{}"),
    ]  # fmt: skip
    _, batches = taken(messages, model)
    cut = [[(piece.next_offset, piece.records, piece.rows) for piece, *_ in batch] for batch in batches]
    assert cut == [[(2, 2, 6)], [(3, 1, 3)], [(4, 1, 30)], [(6, 2, 2)]]
    assert not model.waiting.is_set()


def test_each_row_has_an_identity_an_answer_and_an_observation_and_each_record_one_of_its_format() -> None:
    model = Model(SPEC)
    messages = [
        record(10, b'{"x": 25}'), record(12, rows(10, 200, None, 40), ARROW_TYPE),
        record(13, msgspec.msgpack.encode({"x": 75}), MSGPACK_TYPE), record(14, b"no arrow", ARROW_TYPE), record(15, b"7"),
    ]  # fmt: skip
    _, (batch,) = taken(messages, model)
    output, observed = emitted(batch, model)
    as_json, batch_answer, packed, bad_batch, bad_json = output.predictions
    answers = [
        json.loads(as_json), *decode_batch(batch_answer).to_pylist(), msgspec.msgpack.decode(packed),
        *decode_batch(bad_batch).to_pylist(), json.loads(bad_json),
    ]  # fmt: skip
    places = [(10, 0), (12, 0), (12, 1), (12, 2), (12, 3), (13, 0), (14, 0), (15, 0)]
    ids = [prediction_id(STAMP_MS + offset, TOPIC_ID, 0, offset, row) for offset, row in places]
    assert [answer["prediction_id"] for answer in answers] == [str(one) for one in ids]
    assert [(row["offset"], row["row"]) for row in observed] == places
    assert [row["prediction_id"] for row in observed] == [one.bytes for one in ids]
    assert [row["reason"] for row in observed] == [
        "",
        "",
        "out_of_range",
        "missing_field",
        "",
        "",
        "undecodable",
        "undecodable",
    ]
    np.testing.assert_array_equal(
        [answer["score"] for answer in answers[1:5]], np.array([0.9, np.nan, np.nan, 0.6], np.float32)
    )
    assert (answers[0]["label"], answers[5]["label"]) == ("no", "yes")
    assert [(letter.message.offset(), letter.rejection.reason) for letter in output.dead_letters] == [
        (12, "out_of_range"), (14, "undecodable"), (15, "undecodable"),
    ]  # fmt: skip
    assert "row 1, the first of 2 bad ones among 4" in output.dead_letters[0].rejection.message
    assert output.reasons == {"out_of_range": 1, "missing_field": 1, "undecodable": 2}
    assert output.rejected.tolist() == [2, 3, 6, 7]
    kinds = [dict(output.headers.get(i, [])).get("content-type") for i in range(5)]
    assert kinds == [
        None,
        ARROW_TYPE.encode(),
        MSGPACK_TYPE.encode(),
        ARROW_TYPE.encode(),
        None,
    ]
