"""Bytewax, asking Triton for each batch that its Kafka source reads, which is the fastest of its ways. `python -m bytewax.run …:flow`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from confluent_kafka import OFFSET_STORED
from tritonclient.grpc import InferenceServerClient

from benchmarks.peers import common

BATCH_RECORDS = 1024
client = InferenceServerClient(common.TRITON)


def ask(messages: list[Any]) -> Iterable[KafkaSinkMessage]:
    rows = [json.loads(message.value) for message in messages]
    found = client.infer(
        common.MODEL, common.tensors(rows), outputs=common.OUTPUTS, parameters=common.PARAMETERS
    )
    scores = found.as_numpy("scores").tolist()
    return [
        KafkaSinkMessage(message.key, common.answer_bytes(row))
        for message, row in zip(messages, scores, strict=True)
    ]


flow = Dataflow("bench")
source = KafkaSource(
    [common.BOOTSTRAP], [common.REQUESTS], starting_offset=OFFSET_STORED, batch_size=BATCH_RECORDS,
    add_config={"group.id": common.GROUP},
)  # fmt: skip
answers = op.flat_map_batch("ask", op.input("requests", flow, source), ask)
op.output("predictions", answers, KafkaSink([common.BOOTSTRAP], common.PREDICTIONS))
