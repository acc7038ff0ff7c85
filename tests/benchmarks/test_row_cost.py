"""The guard against a slower gateway: how many Python operations a row costs, which is the same on every machine and under any load."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable

import numpy as np
import pytest
from confluent_kafka import Message

from features.encode import encode
from inference.admit import admit
from inference.emit import emit
from inference.headers import said
from inference.infer import Answer
from inference.model import Model
from inference.progress import Assignment, Slice
from inference.router import ServedArm, Share
from inference.versions import Version
from runtime.headers import Headers
from schemas.events import Arm
from schemas.spec import decode_spec

NUMBERS = 8
SPEC = decode_spec(
    'name = "toy"\ntask = "binary"\nclasses = ["no", "yes"]\nmodule = "m:T"\n[features]\n'
    + "\n".join(f'x{i} = {{ type = "float", min = 0, max = 1 }}' for i in range(NUMBERS)),
    "toy",
)
STATE = {"mean": np.zeros(NUMBERS, np.float32), "std": np.ones(NUMBERS, np.float32)}
VERSION = Version("1.0-a", "1.0", SPEC, STATE, {}, np.zeros((0, 2), np.float32), 0.0)
SERVED = ServedArm(Arm(name="champion", role="live", version="1.0", artifact="1.0-a"), VERSION)
ASSIGNMENT = Assignment("requests.toy", 0, uuid.UUID(int=7), 0, 0)
OPERATIONS_A_ROW = {"no headers": 8, "a content type": 8}
"""Calls from bytecode, per row of JSON with 8 numbers; today 7, and room for one. Lower it when it becomes less."""


HEADERS: dict[str, Headers] = {
    "no headers": [],
    "a content type": [("content-type", b"application/json")],
}


def records(count: int, headers: Headers) -> list[Message]:
    """Each with headers of its own, as the Kafka client makes them."""
    value = json.dumps({f"x{i}": 0.5 for i in range(NUMBERS)}).encode()
    return [
        Message(
            topic="requests.toy", partition=0, offset=i, key=b"k%d" % i, value=value, timestamp=(1, 1_700_000_000_000),
            headers=list(headers),
        )
        for i in range(count)
    ]  # fmt: skip


def serve(messages: list[Message], model: Model) -> list[bytes]:
    """What the gateway does with a micro-batch, but for asking Triton."""
    n = len(messages)
    piece = Slice(ASSIGNMENT, n, n, n, 0, 0)
    admitted = admit(SPEC, messages, said(messages), max(map(len, messages)))
    decoded = model.decoder.decode_all(admitted)
    encode(SPEC, STATE, decoded.columns)
    share = Share(SERVED, np.arange(n), 1.0)
    scores = np.full((n, 2), 0.5, np.float32)
    answers = [Answer(share, decoded.columns, scores, np.zeros(n, bool), 1.0)]
    (output,) = emit(
        SPEC, [piece], messages, admitted, decoded.accepted, answers, decoded.rejections, decoded.request_ids,
        revision=1, observed_ms=1_700_000_000_000, trace_headers=[],
    )  # fmt: skip
    return output.predictions


def operations(work: Callable[[], object]) -> int:
    """Calls of Python and C functions from bytecode while `work` runs."""
    seen = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return seen


@pytest.mark.parametrize("name", HEADERS)
def test_a_row_costs_no_more_python_than_it_did(name: str) -> None:
    model = Model(SPEC)
    few, many = records(500, HEADERS[name]), records(1000, HEADERS[name])
    assert len(serve(many, model)) == len(many)  # and everything is imported and compiled
    a_row = (operations(lambda: serve(many, model)) - operations(lambda: serve(few, model))) / 500
    assert a_row <= OPERATIONS_A_ROW[name], f"{a_row:.2f} operations a row"


@pytest.mark.parametrize("name", HEADERS)
def test_what_a_micro_batch_costs_beside_its_rows_does_not_grow_with_them(name: str) -> None:
    model = Model(SPEC)
    batches = {n: records(n, HEADERS[name]) for n in (250, 500, 1000)}
    serve(batches[1000], model)
    found = {n: operations(lambda n=n: serve(batches[n], model)) for n in batches}  # type: ignore[misc]  # bound at once
    first, second = (found[500] - found[250]) / 250, (found[1000] - found[500]) / 500
    assert second == pytest.approx(first, rel=0.05), f"not linear: {found}"
