"""What the limit loop is told is what it reads."""

from __future__ import annotations

import msgspec

from benchmarks.limit import Plan, Tensor


def test_a_plan_is_read_as_it_was_written() -> None:
    plan = Plan(
        requests="requests.m", predictions="p", observations="o", model="m", artifact="1.0-a", batch_records=2,
        tensors=[Tensor("dense", "FP32", [2, 1], "<f4", b"\x00" * 8)], prediction_values=[b"{}"],
        prediction_headers=[("content-type", b"application/msgpack")], observation_values=[b"arrow"],
    )  # fmt: skip
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan) == plan
