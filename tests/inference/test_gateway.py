"""The gateway against a real broker and a real tritonserver."""

import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType

from compose.embedded.stack import Stack
from runtime.headers import pairs, text
from runtime.kafka import admin
from runtime.settings import Settings
from schemas.artifact import WEIGHTS
from schemas.identity import MAX_TIMESTAMP_MS, prediction_id
from tests.inference.serving import (
    FEATURES,
    MODEL,
    REQUESTS_TOPIC,
    Gateway,
    Readers,
    arm,
    committed,
    gateway,
    readers,
    request,
    route,
    send,
    topic_id,
    version,
)
from tests.waiting import until

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def settings(infrastructure: Stack) -> Settings:
    return infrastructure.settings


@pytest.fixture(scope="module")
def champion(settings: Settings) -> str:
    return version(settings, "1.0")


@pytest.fixture(scope="module")
def gateways(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Gateway]]:
    """The gateway that the tests share: empty, or the one that runs."""
    shared: list[Gateway] = []
    yield shared
    for process in shared:
        assert process.stop() == 0, process.log.read_text()[-4000:]


@pytest.fixture
def running(
    gateways: list[Gateway], settings: Settings, champion: str, tmp_path_factory: pytest.TempPathFactory
) -> Gateway:
    """A gateway that serves `champion` and has nothing left to do."""
    revision = route(settings, arm(champion))
    if not gateways or gateways[0].exit_code is not None:
        gateways[:] = [Gateway(settings, tmp_path_factory.mktemp("gateway"))]
    (process,) = gateways
    process.wait_ready()
    process.wait_route(revision)
    until(lambda: idle(process), "no lag")
    return process


@pytest.fixture
def written(running: Gateway, settings: Settings) -> Iterator[Readers]:
    """What is written from now on."""
    with readers(settings) as found:
        yield found


def idle(process: Gateway) -> bool:
    stages = process.health()["stages"].values()
    return bool(stages) and all(stage["lag_records"] == 0 for stage in stages)


def test_a_request_becomes_a_prediction_and_an_observation_with_its_offset_committed(
    written: Readers, settings: Settings
) -> None:
    now = int(time.time() * 1000)
    (place,) = send(
        settings,
        [
            {
                "value": request(),
                "key": b"tenant-1",
                "timestamp": now,
                "headers": {"ce_id": "r-1", "traceparent": TRACEPARENT},
            }
        ],
    )
    (answer,) = written.answers(1)
    topic = topic_id(settings)
    identity = prediction_id(now, topic, place.partition, place.offset)
    assert answer["prediction_id"] == str(identity)
    assert (answer["model"], answer["version"], answer["request_id"]) == (MODEL, "1.0", "r-1")
    assert answer["label"] == max(answer["scores"], key=answer["scores"].__getitem__)
    assert answer["score"] == answer["scores"][answer["label"]]
    (message,) = written.predictions.messages
    assert (message.key(), message.partition()) == (b"tenant-1", place.partition)
    assert text(pairs(message.headers()), "traceparent") == TRACEPARENT
    (row,) = written.observations(1)
    assert row["prediction_id"] == identity.bytes
    assert row["topic_id"] == topic.bytes
    assert row["entity"] == "tenant-1"
    assert row["trace_id"] == TRACEPARENT.split("-")[1]
    assert (row["role"], row["arm"], row["status"]) == ("live", "champion", "answered")
    assert row["numbers"] == pytest.approx(list(FEATURES.values()))
    assert row["scores"] == pytest.approx(list(answer["scores"].values()))
    assert row["segments"] == ["period=0.5..0.75"]
    until(
        lambda: committed(settings)[place.partition] == (place.offset + 1, str(topic)), "the committed offset"
    )


def bad_records() -> list[tuple[dict[str, Any], str, str, str]]:
    """(record, reason, field, what the expectation begins with)."""
    number = "a finite number from 0 to 1"
    features = request()
    return [
        ({"value": b'{"period": 0.5,'}, "undecodable", "", "a JSON object"),
        ({"value": None}, "undecodable", "", "a JSON object"),
        ({"value": b"[1]"}, "undecodable", "", "a JSON object"),
        ({"value": b'{"period": "\xff"}'}, "undecodable", "", "UTF-8"),
        ({"value": features, "headers": {"content-type": "text/csv"}}, "unsupported_content_type", "content-type", "one of application/"),
        ({"value": b'{"period": 0.5}'}, "missing_field", "nswprice", number),
        ({"value": request(transfer=None)}, "missing_field", "transfer", number),
        ({"value": request(colour=1)}, "unknown_field", "colour", "one of period"),
        ({"value": request(period="0.5")}, "wrong_type", "period", number),
        ({"value": request(period=True)}, "wrong_type", "period", number),
        ({"value": request(period=float("nan"))}, "not_finite", "period", number),
        ({"value": request(period=float("-inf"))}, "not_finite", "period", number),
        ({"value": features.replace(b"0.5", b"1e999")}, "not_finite", "period", number),
        ({"value": request(vicprice=-0.1)}, "out_of_range", "vicprice", number),
        ({"value": b'{"period": ' + b" " * 70_000 + b"0.5}"}, "oversized", "", "at most 65536 bytes"),
        ({"value": features, "timestamp": MAX_TIMESTAMP_MS + 1}, "bad_timestamp", "", "a record timestamp"),
        ({"value": b'{"features": ' + features + b', "extra": 1}'}, "bad_envelope", "extra", "features, request_id"),
        ({"value": b'{"features": ' + features + b', "request_id": "' + b"r" * 201 + b'"}'}, "bad_envelope", "request_id", "a text of at most 200"),
        ({"value": b'{"features": ' + features + b', "model": "reviews"}'}, "wrong_model", "model", "'electricity'"),
        ({"value": b'{"features": ' + request(period=2) + b"}"}, "out_of_range", "features.period", number),
    ]  # fmt: skip


def allow_any_timestamp(settings: Settings, allowed: bool) -> None:
    """Brokers refuse timestamps of the far future by default."""
    value = str(2**63 - 1 if allowed else 3_600_000)
    entry = ConfigEntry("message.timestamp.after.max.ms", value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, REQUESTS_TOPIC, incremental_configs=[entry])
    client = admin(settings)
    for future in client.incremental_alter_configs([resource]).values():
        future.result(10)


def test_each_bad_record_is_answered_and_kept_and_the_good_ones_around_it_are_served(
    written: Readers, settings: Settings
) -> None:
    bad = bad_records()
    records: list[dict[str, Any]] = [{"value": request(), "key": b"good"}]
    for record, *_ in bad:
        records += [{"key": b"\xff\x01", **record}, {"value": request(), "key": b"good"}]
    allow_any_timestamp(settings, True)
    try:
        send(settings, [{"partition": 0, **record} for record in records])
    finally:
        allow_any_timestamp(settings, False)
    answers = written.answers(len(records))
    rejected = answers[1::2]
    assert all(answer["label"] for answer in answers[0::2])
    for answer, (record, reason, field, expected) in zip(rejected, bad, strict=True):
        found = answer["rejected"]
        assert (found["reason"], found["field"]) == (reason, field), record
        assert found["expected"].startswith(expected), record
        assert "version" not in answer
    letters = written.dead_letters.until(len(bad))
    kept = {(text(pairs(m.headers()), "tidemill-offset")): m for m in letters}
    assert len(kept) == len(bad)
    for message in letters:
        headers = pairs(message.headers())
        offset = int(text(headers, "tidemill-offset"))
        first = min(int(key) for key in kept)
        record, reason, field, _ = bad[(offset - first) // 2]
        assert message.value() == record["value"]
        assert message.key() == b"\xff\x01"
        assert (text(headers, "tidemill-reason"), text(headers, "tidemill-field")) == (reason, field)
        assert text(headers, "tidemill-topic-id") == str(topic_id(settings))
        if "headers" in record:
            assert text(headers, "content-type") == "text/csv"
    rows = written.observations(len(records))
    assert Counter(row["reason"] for row in rows) == Counter(
        [""] * (len(bad) + 1) + [reason for _, reason, _, _ in bad]
    )
    assert {row["entity"] for row in rows if row["status"] == "rejected"} == {"ff01"}
    assert len({row["prediction_id"] for row in rows}) == len(records)


def test_a_shadow_is_observed_once_a_row_and_answers_nobody(
    running: Gateway, written: Readers, settings: Settings, champion: str
) -> None:
    shadow = version(settings, "2.0")
    running.wait_route(route(settings, arm(champion), arm(shadow, "baseline", "shadow")))
    send(settings, [{"value": request(), "key": b"%d" % i} for i in range(50)])
    assert {answer["version"] for answer in written.answers(50)} == {"1.0"}
    rows = written.observations(100)
    assert Counter((row["role"], row["arm"], row["version"]) for row in rows) == {
        ("live", "champion", "1.0"): 50, ("shadow", "baseline", "2.0"): 50,
    }  # fmt: skip
    assert len({(row["prediction_id"], row["arm"]) for row in rows}) == 100


def test_two_live_arms_share_the_keys_with_their_propensity(
    running: Gateway, written: Readers, settings: Settings, champion: str
) -> None:
    challenger = version(settings, "2.0")
    running.wait_route(route(settings, arm(champion, weight=0.8), arm(challenger, "challenger", weight=0.2)))
    send(settings, [{"value": request(), "key": b"%d" % (i % 100)} for i in range(300)])
    written.answers(300)
    rows = written.observations(300)
    by_key = {row["entity"]: {r["arm"] for r in rows if r["entity"] == row["entity"]} for row in rows}
    assert all(len(arms) == 1 for arms in by_key.values())
    assert {(row["arm"], round(row["propensity"], 3)) for row in rows} == {
        ("champion", 0.8),
        ("challenger", 0.2),
    }


def test_without_a_version_requests_are_rejected_and_say_so(
    running: Gateway, written: Readers, settings: Settings
) -> None:
    running.wait_route(route(settings))
    send(settings, [{"value": request(), "key": b"k"}, {"value": b"{}", "key": b"k"}])
    first, second = written.answers(2)
    assert (first["rejected"]["reason"], first["rejected"]["field"]) == ("no_ready_version", "")
    assert first["rejected"]["expected"] == "a model with a ready version"
    assert second["rejected"]["reason"] == "missing_field"
    assert len(written.dead_letters.until(2)) == 2


@pytest.mark.parametrize("fault", ["golden", "hash", "missing"])
def test_a_version_that_fails_its_check_never_serves_and_the_others_go_on(
    running: Gateway, written: Readers, settings: Settings, champion: str, fault: str
) -> None:
    if fault == "golden":
        broken, says = version(settings, "3.0", golden_error=0.1), "golden"
    elif fault == "hash":
        broken, says = version(settings, "4.0"), "wrong hash"
        weights = settings.artifacts_dir / MODEL / broken / WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    else:
        broken, says = f"5.0-{'0' * 12}", "not in the store"
    table = running.wait_route(
        route(settings, arm(champion, weight=0.5), arm(broken, "challenger", weight=0.5))
    )
    assert [served["artifact"] for served in table["arms"]] == [champion]
    assert says in table["failed"][broken]
    assert "tidemill_inferences_total" in running.metrics()
    send(settings, [{"value": request(), "key": b"%d" % i} for i in range(20)])
    assert {answer["version"] for answer in written.answers(20)} == {"1.0"}
    assert {row["propensity"] for row in written.observations(20)} == {1.0}


def test_a_live_version_that_fails_its_check_leaves_nobody_to_answer(
    running: Gateway, written: Readers, settings: Settings
) -> None:
    running.wait_route(route(settings, arm(version(settings, "3.0", golden_error=0.1))))
    send(settings, [{"value": request(), "key": b"k"}])
    assert written.answers(1)[0]["rejected"]["reason"] == "no_ready_version"


def test_killed_in_the_middle_each_request_is_still_answered_exactly_once_and_in_order(
    running: Gateway, written: Readers, settings: Settings, tmp_path: Path
) -> None:
    count = 5000
    places = send(
        settings,
        [{"value": request(), "key": b"%d" % i, "timestamp": 1_700_000_000_000 + i} for i in range(count)],
    )
    until(written.predictions.read, "the first answers")
    running.kill()
    with gateway(settings, tmp_path) as successor:
        successor.wait_ready()
        messages = written.predictions.until(count)
    topic = topic_id(settings)
    expected: dict[int, list[tuple[bytes, str]]] = {}
    for index, place in sorted(enumerate(places), key=lambda item: (item[1].partition, item[1].offset)):
        identity = prediction_id(1_700_000_000_000 + index, topic, place.partition, place.offset)
        expected.setdefault(place.partition, []).append((b"%d" % index, str(identity)))
    found: dict[int, list[tuple[bytes, str]]] = {}
    for message in messages:
        identity_text = (message.value() or b"")[18:54].decode()
        found.setdefault(message.partition() or 0, []).append((message.key() or b"", identity_text))
    assert found == expected
    rows = written.observations(count)
    assert {uuid.UUID(bytes=row["prediction_id"]) for row in rows} == {
        uuid.UUID(i) for ids in expected.values() for _, i in ids
    }


def test_a_second_gateway_takes_its_share_and_gives_it_back(
    running: Gateway, written: Readers, settings: Settings, tmp_path: Path
) -> None:
    records = [{"value": request(), "key": b"%d" % i} for i in range(2000)]
    send(settings, records)
    with gateway(settings, tmp_path, slot=1) as second:
        second.wait_ready()
        until(lambda: second.health()["stages"] and running.health()["stages"], "both have partitions")
        send(settings, records)
        until(lambda: idle(running) and idle(second), "no lag")
        written.predictions.until(4000)
    send(settings, records)
    written.predictions.until(6000)
    assert len({row["prediction_id"] for row in written.observations(6000)}) == 6000


def test_while_triton_is_away_rows_are_held_and_then_all_answered(
    running: Gateway, written: Readers, settings: Settings, infrastructure: Stack
) -> None:
    restarts = infrastructure.restart_count("triton")
    infrastructure.kill("triton")
    send(settings, [{"value": request(), "key": b"%d" % i} for i in range(3000)])
    until(
        lambda: any(s["state"] == "paused" and s["lag_records"] for s in running.health()["stages"].values()),
        "paused",
    )
    until(lambda: infrastructure.restart_count("triton") > restarts, "a new tritonserver")
    assert all(answer.get("label") for answer in written.answers(3000))
    assert len(written.observations(3000)) == 3000
    assert written.dead_letters.messages == []
    until(lambda: running.health()["ready"] and idle(running), "running again")
