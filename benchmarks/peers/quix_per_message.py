"""Quix Streams, asking Triton for each message, as its documentation shows for calls to services."""

from __future__ import annotations

from typing import Any

from quixstreams import Application
from tritonclient.grpc import InferenceServerClient

from benchmarks.peers import common


def main() -> None:
    client = InferenceServerClient(common.TRITON)

    def ask(row: dict[str, float]) -> dict[str, Any]:
        found = client.infer(
            common.MODEL, common.tensors([row]), outputs=common.OUTPUTS, parameters=common.PARAMETERS
        )
        return common.answer(found.as_numpy("scores")[0].tolist())

    application = Application(
        broker_address=common.BOOTSTRAP, consumer_group=common.GROUP, auto_offset_reset="earliest",
        loglevel="WARNING", auto_create_topics=False,
    )  # fmt: skip
    requests = application.topic(common.REQUESTS, value_deserializer="json")
    predictions = application.topic(common.PREDICTIONS, value_serializer="json")
    stream = application.dataframe(requests)
    stream.apply(ask).to_topic(predictions)
    application.run()


if __name__ == "__main__":
    main()
