"""The ends of outcomes and observations: with ClickHouse below and Kafka above the sink's place, every label is seen once and at once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Message, TopicPartition

from compose.embedded.stack import Stack
from runtime.kafka import consumer
from runtime.reader import TopicReader
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer
from schemas.arrow import OBSERVATIONS, OUTCOMES, encode_batch
from schemas.errors import Outage
from schemas.spec import ModelSpec
from tests.training.toys import SPEC, rows, write_model
from tests.training.warehouse import START_MS, Warehouse, at, labelled
from training import stored
from training import tail as tail_module
from training.history import History
from training.snapshot import update_rows
from training.tail import Tail
from warehouse.client import connect


class Stream:
    """What gateway, labels and sink would have written of one model, as far as each of them has come."""

    def __init__(self, settings: Settings, warehouse: Warehouse, group: str) -> None:
        self._settings, self._warehouse, self._group = settings, warehouse, group
        self._producer = TransactionalProducer(settings, f"test-{uuid.uuid4()}")

    def observe(self, count: int, *, kafka: bool = True, sink: bool = True) -> None:
        """Rows as `Warehouse.observe` writes them, in Kafka, in ClickHouse or in both."""
        ids, first = self._warehouse.ids, len(self._warehouse.ids)
        if sink:
            self._warehouse.observe(count)
        else:
            ids += [uuid.uuid4() for _ in range(count)]
        if kafka:
            self._send("observations", OBSERVATIONS, [
                {
                    "prediction_id": ids[n].bytes, "model": self._warehouse.model, "role": role, "status": "answered",
                    "requested_at": at(n * 1000), "observed_at": at(n * 1000), "numbers": [float(n), float("nan")],
                    "texts": [f"text {n}"],
                }
                for n in range(first, first + count) for role in ("live", "shadow")
            ])  # fmt: skip

    def label(
        self, numbers: range, joined_ms: int, *, truth: str = "yes", revision: int = 0, sink: bool = False
    ) -> None:
        """Labels as `Warehouse.label` writes them, in Kafka and perhaps in ClickHouse."""
        if sink:
            self._warehouse.label(numbers, joined_ms, truth, revision)
        self._send("outcomes", OUTCOMES, [
            {
                "prediction_id": self._warehouse.ids[n].bytes, "model": self._warehouse.model, "role": role, "truth": truth,
                "label": "no", "loss": 0.5, "revision": revision, "requested_at": at(n * 1000),
                "joined_at": at(joined_ms + place),
            }
            for place, n in enumerate(numbers) for role in ("live", "shadow")
        ])  # fmt: skip

    def sink_is_here(self) -> None:
        """The sink has brought all there is into ClickHouse, and says so."""
        client = consumer(self._settings, self._group)
        places = [TopicPartition(topic, p) for topic in ("outcomes", "observations") for p in range(2)]
        for place in places:
            _, place.offset = client.get_watermark_offsets(place, timeout=10)
        client.commit(offsets=places, asynchronous=False)
        client.close()

    def close(self) -> None:
        self._producer.close()

    def _send(self, topic: str, schema: pa.Schema, records: list[dict[str, Any]]) -> None:
        self._producer.begin()
        self._producer.produce(topic, encode_batch(filled(schema, records)), self._warehouse.model.encode())
        self._producer.commit()


def filled(schema: pa.Schema, records: list[dict[str, Any]]) -> pa.RecordBatch:
    """A batch of `schema` in which what a record does not say is zero or empty."""
    columns = []
    for field in schema:
        empty: Any = 0
        if pa.types.is_string(field.type):
            empty = ""
        elif pa.types.is_fixed_size_binary(field.type):
            empty = bytes(field.type.byte_width)
        elif pa.types.is_list(field.type):
            empty = []
        columns.append(pa.array([record.get(field.name, empty) for record in records], field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return msgspec.structs.replace(write_model(tmp_path, SPEC), name=f"toy_{uuid.uuid4().hex[:8]}")


@pytest.fixture
def warehouse(infrastructure: Stack, spec: ModelSpec) -> Iterator[Warehouse]:
    found = infrastructure.settings
    client = connect(found.clickhouse_url, found.clickhouse_user, found.clickhouse_password)
    yield Warehouse(client, spec.name)
    client.close()


@pytest.fixture
def stream(infrastructure: Stack, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    group = f"sink-{uuid.uuid4()}"
    monkeypatch.setattr(tail_module, "SINK_GROUP", group)
    made = Stream(infrastructure.settings, warehouse, group)
    yield made
    made.close()


@pytest.fixture
def tail(infrastructure: Stack, stream: Stream) -> Iterator[Tail]:
    made = Tail(infrastructure.settings)
    yield made
    made.close()


def test_a_label_is_seen_before_it_and_its_observation_are_in_clickhouse(
    stream: Stream, warehouse: Warehouse, tail: Tail, spec: ModelSpec
) -> None:
    history = History(warehouse.client, spec, tail)
    assert labelled(history, 10_000) == {}
    stream.observe(4, sink=False)
    stream.label(range(3), 50_000)
    assert labelled(history, 60_000) == {0: 1, 1: 1, 2: 1}
    stream.label(range(3, 4), 70_000, truth="no")
    assert labelled(history, 60_000) == {0: 1, 1: 1, 2: 1}
    assert labelled(history, 80_000) == {0: 1, 1: 1, 2: 1, 3: 0}
    assert history.seen_ms == START_MS + 70_000


def test_what_the_sink_has_confirmed_comes_from_clickhouse_and_nothing_comes_twice(
    stream: Stream, warehouse: Warehouse, tail: Tail, spec: ModelSpec
) -> None:
    stream.observe(6)
    stream.label(range(2), 50_000, sink=True)
    stream.sink_is_here()
    stream.label(range(2, 4), 60_000, sink=True)  # inserted, not confirmed yet
    stream.label(range(4, 6), 70_000)
    history = History(warehouse.client, spec, tail)
    assert labelled(history, 100_000) == dict.fromkeys(range(6), 1)
    stream.label(range(1), 80_000, truth="no", revision=1)
    assert labelled(history, 100_000) == {0: 0} | dict.fromkeys(range(1, 6), 1)
    assert labelled(history, 75_000) == dict.fromkeys(range(6), 1)


def test_a_label_whose_observation_is_nowhere_yet_comes_with_the_next_order(
    stream: Stream, warehouse: Warehouse, tail: Tail, spec: ModelSpec
) -> None:
    history = History(warehouse.client, spec, tail)
    assert labelled(history, 10_000) == {}
    stream.observe(1)
    stream.observe(1, kafka=False, sink=False)
    stream.label(range(2), 50_000)
    assert labelled(history, 60_000) == {0: 1}
    warehouse.insert_observations(range(1, 2))
    assert labelled(history, 60_000) == {0: 1, 1: 1}


def test_a_model_that_nobody_asked_for_is_let_go_and_taken_up_again(
    stream: Stream, warehouse: Warehouse, tail: Tail, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(warehouse.client, spec, tail)
    assert labelled(history, 10_000) == {}
    monkeypatch.setattr(tail_module, "OUTCOME_ROWS", 3)
    stream.observe(4)
    stream.label(range(4), 50_000, sink=True)
    tail.read_to_end()
    assert not tail.follows(spec)
    stream.sink_is_here()
    assert labelled(history, 60_000) == dict.fromkeys(range(4), 1)


def test_after_an_outage_only_what_came_meanwhile_is_asked_for(
    infrastructure: Stack,
    stream: Stream,
    warehouse: Warehouse,
    tail: Tail,
    spec: ModelSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream.observe(6)
    stream.label(range(2), 50_000, sink=True)
    stream.sink_is_here()
    history = History(warehouse.client, spec, tail)
    assert labelled(history, 60_000) == {0: 1, 1: 1}
    stream.label(range(2, 4), 70_000, sink=True)
    stream.sink_is_here()
    stream.label(range(4, 6), 80_000)
    asked: list[int] = []
    features = stored.features

    def away_once(*arguments: Any) -> Any:
        asked.append(len(arguments[2]))
        if len(asked) == 1:
            raise Outage("ClickHouse is away")
        return features(*arguments)

    monkeypatch.setattr(stored, "features", away_once)
    for _ in range(2):
        other = Tail(infrastructure.settings)
        history.reconnect(warehouse.client, other)
        if not asked:
            with pytest.raises(Outage):
                labelled(history, 100_000)
            assert history.seen_ms == START_MS + 50_001
        else:
            assert labelled(history, 100_000) == dict.fromkeys(range(6), 1)
        other.close()
    assert asked[:2] == [2, 2]


def test_a_partition_that_gives_nothing_time_after_time_is_an_outage(
    stream: Stream, warehouse: Warehouse, tail: Tail, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(warehouse.client, spec, tail)
    assert labelled(history, 10_000) == {}
    monkeypatch.setattr(tail_module, "READ_WITHIN_SEC", 0.05)
    stream.observe(1, sink=False)
    with monkeypatch.context() as stalled:
        stalled.setattr(tail._reader, "take", lambda *_: [])
        for _ in range(tail_module.STANDING_READS - 1):
            tail.read_to_end()
        with pytest.raises(Outage, match="observations"):
            tail.read_to_end()
    monkeypatch.setattr(tail_module, "READ_WITHIN_SEC", 10.0)
    tail.read_to_end()


def test_an_update_draws_the_same_rows_through_kafka_and_from_clickhouse(
    stream: Stream, warehouse: Warehouse, tail: Tail, spec: ModelSpec
) -> None:
    followed = History(warehouse.client, spec, tail)
    assert labelled(followed, 10_000) == {}
    stream.observe(100)
    for first in range(0, 100, 20):
        stream.label(range(first, first + 20), 100_000 + first, sink=True)
        assert len(labelled(followed, 200_000)) == first + 20
    file = rows(100)
    drawn, again = (
        update_rows(history.labelled(START_MS + 150_000), file, 20, 60, 1)
        for history in (followed, History(warehouse.client, spec))
    )
    for one, other in zip(drawn, again, strict=True):
        np.testing.assert_array_equal(one.columns.numbers, other.columns.numbers)
        assert one.labels.tobytes() == other.labels.tobytes()
        assert one.columns.texts.equals(other.columns.texts)


def test_a_record_that_no_part_of_ours_wrote_is_passed_over(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    label = {
        "prediction_id": uuid.uuid4().bytes,
        "model": spec.name,
        "role": "live",
        "truth": "yes",
        "label": "no",
    }
    good = encode_batch(filled(OUTCOMES, [label]))
    values = [b"{}", encode_batch(pa.record_batch({"model": [spec.name]})), good]
    taken = [
        [Message(topic="outcomes", partition=0, offset=n, value=value) for n, value in enumerate(values)],
        [],
    ]
    reader = Mock(spec=TopicReader)
    reader.places.return_value, reader.take.side_effect = [], taken
    sink = Mock()
    sink.committed.return_value = []
    monkeypatch.setattr(tail_module, "TopicReader", lambda *_, **__: reader)
    monkeypatch.setattr(tail_module, "consumer", lambda *_, **__: sink)
    tail = Tail(Settings())
    tail.follow(spec)
    tail.read()
    assert sum(len(joined.ids) for joined in tail.outcomes(spec)) == 1
    assert "outcomes:0:0 is passed over" in caplog.text
    assert "outcomes:0:1 is passed over" in caplog.text
    assert "it lacks" in caplog.text
