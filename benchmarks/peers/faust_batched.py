"""Faust, asking Triton for each run of messages that `stream.take_events` gives, with its asynchronous client."""

from __future__ import annotations

from typing import Any

import faust
from tritonclient.grpc.aio import InferenceServerClient

from benchmarks.peers import common

BATCH_RECORDS = 1024
WITHIN_SEC = 0.05

app = faust.App(
    common.GROUP, broker=f"kafka://{common.BOOTSTRAP}", topic_disable_leader=True, web_enabled=False
)
requests = app.topic(common.REQUESTS, value_serializer="json")
predictions = app.topic(common.PREDICTIONS, value_serializer="json")


async def ask(stream: Any) -> None:
    client = InferenceServerClient(common.TRITON)
    async for events in stream.take_events(BATCH_RECORDS, within=WITHIN_SEC):
        found = await client.infer(
            common.MODEL, common.tensors([event.value for event in events]), outputs=common.OUTPUTS,
            parameters=common.PARAMETERS,
        )  # fmt: skip
        for event, scores in zip(events, found.as_numpy("scores").tolist(), strict=True):
            await predictions.send(key=event.key, value=common.answer(scores))


app.agent(requests)(ask)

if __name__ == "__main__":
    app.main()
