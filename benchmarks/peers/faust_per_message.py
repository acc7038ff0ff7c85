"""Faust, asking Triton for each message with its asynchronous client."""

from __future__ import annotations

from typing import Any

import faust
from tritonclient.grpc.aio import InferenceServerClient

from benchmarks.peers import common

app = faust.App(
    common.GROUP, broker=f"kafka://{common.BOOTSTRAP}", topic_disable_leader=True, web_enabled=False
)
requests = app.topic(common.REQUESTS, value_serializer="json")
predictions = app.topic(common.PREDICTIONS, value_serializer="json")


async def ask(stream: Any) -> None:
    client = InferenceServerClient(common.TRITON)
    async for key, row in stream.items():
        found = await client.infer(
            common.MODEL, common.tensors([row]), outputs=common.OUTPUTS, parameters=common.PARAMETERS
        )
        await predictions.send(key=key, value=common.answer(found.as_numpy("scores")[0].tolist()))


app.agent(requests)(ask)

if __name__ == "__main__":
    app.main()
