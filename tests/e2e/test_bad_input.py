"""Poison among good records, from the producer to ClickHouse: every good one is served, every bad one answered by name and kept."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

import pytest
from clickhouse_connect.driver.client import Client as Warehouse
from confluent_kafka import Consumer, TopicPartition

from runtime.headers import pairs, text
from runtime.kafka import consumer
from schemas import dead_letters
from schemas.topics import DEAD_LETTERS
from tests.e2e.conftest import Workshop
from tests.e2e.toys import World
from tests.waiting import until
from tidemill import Client

pytestmark = pytest.mark.stack
GOOD_ROWS = 300
PARTITION = 1
KEY = b"one entity"


class Poison(NamedTuple):
    """A record that can never be served, and what its producer is told."""

    value: bytes
    reason: str
    field: str
    content_type: str = "application/json"


POISON = [
    Poison(b'{"x": 0.5', "undecodable", ""),
    Poison(b"\xff\xfe", "undecodable", ""),
    Poison(b"[0.5, 0.5]", "undecodable", ""),
    Poison(b'{"x": 0.5, "y": 0.5}', "unsupported_content_type", "content-type", "text/csv"),
    Poison(b'{"x": 0.5}', "missing_field", "y"),
    Poison(b'{"x": 0.5, "y": 0.5, "z": 1}', "unknown_field", "z"),
    Poison(b'{"x": "0.5", "y": 0.5}', "wrong_type", "x"),
    Poison(b'{"x": NaN, "y": 0.5}', "not_finite", "x"),
    Poison(b'{"x": 0.5, "y": -Infinity}', "not_finite", "y"),
    Poison(b'{"x": 0.5, "y": 1e999}', "not_finite", "y"),
    Poison(b'{"x": 11, "y": 0.5}', "out_of_range", "x"),
    Poison(b'{"x": 0.5, "y": 0.5' + b" " * 70_000 + b"}", "oversized", ""),
    Poison(b'{"features": {"x": 0.5, "y": 0.5}, "model": "manual"}', "wrong_model", "model"),
]


@pytest.fixture
def letters(workshop: Workshop) -> Any:
    """Dead letters from now on: (headers, value) of each read so far."""
    reader: Consumer = consumer(workshop.settings, f"letters-{time.time_ns()}")
    places = []
    for partition in reader.list_topics(DEAD_LETTERS.name, timeout=10).topics[DEAD_LETTERS.name].partitions:
        end = reader.get_watermark_offsets(TopicPartition(DEAD_LETTERS.name, partition), timeout=10)[1]
        places.append(TopicPartition(DEAD_LETTERS.name, partition, end))
    reader.assign(places)
    found: list[tuple[dict[str, str], bytes]] = []

    def read() -> list[tuple[dict[str, str], bytes]]:
        for message in reader.consume(1000, 0.1):
            assert message.error() is None, message.error()
            headers = pairs(message.headers())
            found.append(({name: text(headers, name) for name, _ in headers}, message.value() or b""))
        return found

    yield read
    reader.close()


def test_every_good_request_is_served_and_every_bad_one_is_answered_by_name_and_kept(
    workshop: Workshop, served: str, client: Client, analyst: Warehouse, letters: Any
) -> None:
    features, _ = World(seed=12).rows(GOOD_ROWS)
    every = GOOD_ROWS // len(POISON)
    with client.predictions(served) as reader:
        before = client.producer.list_topics(f"requests.{served}", timeout=10)
        assert PARTITION in before.topics[f"requests.{served}"].partitions
        for place, row in enumerate(features):
            client.producer.produce(
                f"requests.{served}", json.dumps({"features": row, "request_id": f"good-{place}"}), KEY,
                partition=PARTITION,
            )  # fmt: skip
            if place % every == 0 and place // every < len(POISON):
                poison = POISON[place // every]
                client.producer.produce(
                    f"requests.{served}", poison.value, KEY, partition=PARTITION,
                    headers=[("content-type", poison.content_type.encode())],
                )  # fmt: skip
        client.flush()
        read: list[Any] = []

        def answered() -> bool:
            read.extend(answer.prediction for answer in reader.read(0.1))
            return len(read) >= GOOD_ROWS + len(POISON)

        until(answered, "an answer to every record")
    good = [prediction.request_id for prediction in read if prediction.rejected is None]
    assert good == [f"good-{place}" for place in range(GOOD_ROWS)]
    rejected = [prediction.rejected for prediction in read if prediction.rejected is not None]
    assert [(each.reason, each.field) for each in rejected] == [(p.reason, p.field) for p in POISON]
    assert all(each.expected for each in rejected)

    kept = until(lambda: found if len(found := letters()) >= len(POISON) else None, "the originals are kept")
    assert [value for _, value in kept] == [poison.value for poison in POISON]
    assert [(h[dead_letters.REASON], h[dead_letters.FIELD]) for h, _ in kept] == [
        (poison.reason, poison.field) for poison in POISON
    ]
    asked = (
        "SELECT reason, field FROM dead_letters WHERE source_topic = {topic:String} AND source_partition = 1 "
        "ORDER BY source_offset"
    )
    until(
        lambda: (
            analyst.query(asked, parameters={"topic": f"requests.{served}"}).result_rows
            == [(poison.reason, poison.field) for poison in POISON]
        ),
        "their rows are in ClickHouse",
    )


def test_bad_feedback_is_kept_by_name_and_the_good_around_it_is_joined_once(
    workshop: Workshop, served: str, client: Client, analyst: Warehouse, letters: Any
) -> None:
    answer = client.ask(served, {"x": 0.5, "y": 0.5}, key=KEY)
    nobody = answer.prediction_id[:-12] + "0" * 12
    topic = f"feedback.{served}"
    bad = {
        ("out_of_range", "value"): json.dumps({"kind": "rating", "value": 9, "prediction_id": answer.prediction_id}),
        ("unknown_category", "value"): json.dumps({"kind": "label", "value": "maybe", "prediction_id": answer.prediction_id}),
        ("undecodable", ""): '{"kind": "label"',
        ("orphan_feedback", "prediction_id"): json.dumps({"kind": "label", "value": "yes", "prediction_id": nobody}),
    }  # fmt: skip
    for value in bad.values():
        client.producer.produce(topic, value, KEY)
    for _ in range(2):  # the same said twice counts once
        client.feedback(
            served, prediction_id=answer.prediction_id, label="yes", key=KEY, at_ms=1_700_000_000_000
        )
    client.flush()
    kept = until(lambda: found if len(found := letters()) >= len(bad) else None, "bad feedback is kept")
    assert {(h[dead_letters.REASON], h[dead_letters.FIELD]): value.decode() for h, value in kept} == bad
    asked = "SELECT truth, revision FROM internal.outcomes WHERE prediction_id = {id:UUID} AND role = 'live'"
    outcomes = until(
        lambda: analyst.query(asked, parameters={"id": answer.prediction_id}).result_rows,
        "the good label is joined",
    )
    assert outcomes == [("yes", 0)]
