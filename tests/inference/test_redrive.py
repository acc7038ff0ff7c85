"""What died is kept as it was, sent again under its identity, and decided on once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import TopicPartition

from cli.dead_letters import dead_letters
from compose.embedded.stack import Stack
from control.dead_letters import DeadLetter, Filter, find
from control.redrive import TRANSACTIONAL_ID, NotRedrivable, discard, redrive
from runtime.clock import now_ms
from runtime.dead_letters import origin_headers
from runtime.kafka import consumer
from runtime.settings import Settings
from runtime.transactions import TransactionalProducer
from schemas.dead_letters import Origin
from schemas.errors import Fenced
from schemas.identity import prediction_id
from schemas.topics import DEAD_LETTER_DECISIONS, REDRIVES
from tests.inference.serving import (
    MODEL,
    REQUESTS_TOPIC,
    Gateway,
    Readers,
    arm,
    gateway,
    readers,
    request,
    route,
    send,
    topic_id,
    version,
)
from tests.reader import Reader
from tests.waiting import until

REDRIVES_TOPIC = REDRIVES.for_model(MODEL)


@pytest.fixture(scope="module")
def settings(infrastructure: Stack) -> Settings:
    return infrastructure.settings


@pytest.fixture(scope="module")
def champion(settings: Settings) -> str:
    return version(settings, "1.0")


@pytest.fixture(scope="module")
def running(settings: Settings, champion: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    route(settings, arm(champion))
    with gateway(settings, tmp_path_factory.mktemp("gateway")) as process:
        process.wait_ready()
        yield process


@pytest.fixture
def written(running: Gateway, settings: Settings, champion: str) -> Iterator[Readers]:
    running.wait_route(route(settings, arm(champion)))
    with readers(settings) as found:
        yield found


def letter(settings: Settings, written: Readers, count: int = 1) -> DeadLetter:
    """The newest of `count` dead letters that were written."""
    message = max(written.dead_letters.until(count), key=lambda m: m.timestamp()[1])
    place = frozenset([(message.partition() or 0, message.offset() or 0)])
    (found,) = find(settings, Filter(places=place))
    return found


def only(found: DeadLetter) -> Filter:
    return Filter(places=frozenset([(found.partition, found.offset)]))


def end_of(settings: Settings, topic: str, partition: int = 0) -> int:
    """The end of a partition's log, uncommitted records included."""
    overrides: dict[str, Any] = {"isolation.level": "read_uncommitted"}
    spy = consumer(settings, "spy", **overrides)
    try:
        return int(spy.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1])
    finally:
        spy.close()


def again(settings: Settings, found: DeadLetter) -> int:
    return redrive(settings, only(found), None, by="a test", comment="", now_ms=now_ms)


def test_a_dead_letter_is_what_the_producer_sent_to_the_byte(written: Readers, settings: Settings) -> None:
    headers: list[tuple[str, Any]] = [
        ("tidemill-reason", b"spoofed"), ("x", b"\xff\x00"), ("x", None), ("tidemill-attempt", b"9"), ("content-type", b"application/json"),
    ]  # fmt: skip
    (place,) = send(
        settings, [{"value": b'{"period":\xff', "key": b"\x00\xfe", "headers": headers, "partition": 1}]
    )
    found = letter(settings, written)
    assert (found.value, found.key, found.headers) == (b'{"period":\xff', b"\x00\xfe", headers)
    assert (found.reason, found.stage, found.model, found.status) == ("undecodable", "gateway", MODEL, "open")
    origin = found.origin
    assert (origin.topic, origin.partition, origin.offset, origin.attempt) == (
        REQUESTS_TOPIC,
        1,
        place.offset,
        0,
    )


def test_a_redriven_request_keeps_its_identity_and_is_answered_once(
    running: Gateway, written: Readers, settings: Settings, champion: str
) -> None:
    running.wait_route(route(settings))
    sent_ms = now_ms() - 5000
    (place,) = send(
        settings, [{"value": request(), "key": b"tenant", "timestamp": sent_ms, "headers": {"ce_id": "r-9"}}]
    )
    found = letter(settings, written)
    assert found.reason == "no_ready_version"
    running.wait_route(route(settings, arm(champion)))
    assert again(settings, found) == 1
    rejected, answered = sorted(written.answers(2), key=lambda answer: "rejected" not in answer)
    identity = str(prediction_id(sent_ms, topic_id(settings), place.partition, place.offset))
    assert rejected["prediction_id"] == answered["prediction_id"] == identity == str(found.prediction_id)
    assert ("attempt" in rejected, answered["attempt"], answered["request_id"]) == (False, 1, "r-9")
    assert {m.partition() for m in written.predictions.messages} == {place.partition}
    first, second = sorted(written.observations(2), key=lambda row: int(row["attempt"]))
    for name in ("prediction_id", "topic_id", "partition", "offset", "requested_at", "entity"):
        assert first[name] == second[name], name
    assert (first["status"], second["status"], second["attempt"]) == ("rejected", "answered", 1)
    assert again(settings, found) == 0
    assert written.answers(2)
    assert [each.status for each in find(settings, only(found))] == ["redriven"]


def test_what_fails_again_is_a_dead_letter_of_the_original_with_the_next_attempt(
    written: Readers, settings: Settings
) -> None:
    send(settings, [{"value": request(period=7), "headers": {"mine": b"1"}}])
    first = letter(settings, written)
    assert again(settings, first) == 1
    second = letter(settings, written, 2)
    assert again(settings, second) == 1
    third = letter(settings, written, 3)
    assert [each.origin.attempt for each in (first, second, third)] == [0, 1, 2]
    assert {(e.origin.topic, e.origin.offset, e.value, str(e.headers)) for e in (first, second, third)} == {
        (REQUESTS_TOPIC, first.origin.offset, request(period=7), str([("mine", b"1")]))
    }
    answers = written.answers(3)
    assert {answer["prediction_id"] for answer in answers} == {str(first.prediction_id)}
    assert [again(settings, each) for each in (first, second)] == [0, 0]


def test_origin_headers_mean_nothing_on_requests(written: Readers, settings: Settings) -> None:
    spoof = Origin(
        topic=REQUESTS_TOPIC, topic_id=uuid.UUID(int=1), partition=0, offset=0, timestamp_ms=5, attempt=3
    )
    now = now_ms()
    (place,) = send(settings, [{"value": request(), "timestamp": now, "headers": origin_headers(spoof)}])
    (answer,) = written.answers(1)
    assert answer["prediction_id"] == str(
        prediction_id(now, topic_id(settings), place.partition, place.offset)
    )
    assert "attempt" not in answer
    assert written.observations(1)[0]["attempt"] == 0


def test_a_redrive_that_does_not_say_what_it_was_is_rejected(written: Readers, settings: Settings) -> None:
    stranger = Origin(
        topic="requests.reviews", topic_id=uuid.uuid4(), partition=0, offset=0, timestamp_ms=5, attempt=1
    )
    send(
        settings,
        [{"value": request()}, {"value": request(), "headers": origin_headers(stranger)}],
        REDRIVES_TOPIC,
    )
    assert [answer["rejected"]["reason"] for answer in written.answers(2)] == ["bad_origin"] * 2
    letters = list(find(settings, Filter(reason="bad_origin", model=MODEL)))
    assert {found.origin.topic for found in letters} == {REDRIVES_TOPIC}
    with pytest.raises(NotRedrivable, match="only requests and feedback can be redriven"):
        again(settings, letters[0])


def test_a_redrive_that_was_killed_before_its_commit_leaves_nothing(
    written: Readers, settings: Settings
) -> None:
    send(settings, [{"value": request(period=7)}])
    found = letter(settings, written)
    decided, redriven = Reader(settings, DEAD_LETTER_DECISIONS.name), Reader(settings, REDRIVES_TOPIC)
    before = end_of(settings, REDRIVES_TOPIC)
    dying = TransactionalProducer(settings, TRANSACTIONAL_ID)
    dying.begin()
    dying.produce(REDRIVES_TOPIC, b"half", partition=0)
    dying.produce(DEAD_LETTER_DECISIONS.name, b"half", key=found.decision_id.encode())
    until(lambda: end_of(settings, REDRIVES_TOPIC) > before, "what it wrote is in the log")
    assert again(settings, found) == 1
    assert [m.value() for m in redriven.until(1)] == [request(period=7)]
    assert [m.key() for m in decided.until(1)] == [found.decision_id.encode()]
    with pytest.raises(Fenced):
        dying.commit()
    decided.close()
    redriven.close()
    written.dead_letters.until(2)  # with its second attempt


def test_what_is_discarded_is_not_redriven(written: Readers, settings: Settings) -> None:
    send(settings, [{"value": request(period=7)}])
    found = letter(settings, written)
    assert discard(settings, only(found), None, by="a test", comment="nonsense", now_ms=now_ms) == 1
    assert again(settings, found) == 0
    assert [each.status for each in find(settings, only(found))] == ["discarded"]


def test_many_go_in_the_order_of_their_originals_to_the_same_partition(
    written: Readers, settings: Settings
) -> None:
    field = f"f{uuid.uuid4().hex}"
    places = send(settings, [{"value": request(**{field: i}), "key": b"%d" % (i % 5)} for i in range(40)])
    written.dead_letters.until(40)
    reader = Reader(settings, REDRIVES_TOPIC)
    assert redrive(settings, Filter(field=field, attempt=0), 30, by="a test", comment="", now_ms=now_ms) == 30
    assert (
        redrive(settings, Filter(field=field, attempt=0), None, by="a test", comment="", now_ms=now_ms) == 10
    )
    found = reader.until(40)
    reader.close()
    for partition in {place.partition for place in places}:
        values = [
            m.value() for m in sorted(found, key=lambda m: m.offset() or 0) if m.partition() == partition
        ]
        expected = [request(**{field: i}) for i, place in enumerate(places) if place.partition == partition]
        assert {*values} == {*expected}
        assert len(values) == len(expected)
    written.dead_letters.until(80)  # with their second attempts


def test_the_command_line_says_how_many_and_asks(
    written: Readers, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = f"f{uuid.uuid4().hex}"
    send(settings, [{"value": request(**{field: i})} for i in range(3)])
    written.dead_letters.until(3)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, answer: str = "") -> str:
        result = CliRunner().invoke(dead_letters, arguments, input=answer)
        assert result.exit_code in (0, 1), result.output
        return result.output

    listed = json.loads(run("list", "--field", field, "--json"))
    assert (listed["count"], {each["reason"] for each in listed["dead_letters"]}) == (3, {"unknown_field"})
    one = listed["dead_letters"][0]["id"]
    assert field in run("show", one)
    shown = json.loads(run("show", one, "--json"))
    assert field.encode() in bytes.fromhex(shown["value_hex"])
    assert run("redrive", "--field", field, "--dry-run") == "3 would be redriven\n"
    assert "3 dead letters will be redriven" in run("redrive", "--field", field, answer="n\n")
    assert json.loads(run("list", "--field", field, "--json"))["count"] == 3
    assert run("discard", one, "--yes") == "1 discarded\n"
    assert run("redrive", "--field", field, "--since", "10m", answer="y\n").endswith("2 redriven\n")
    assert "nothing open" in run("redrive", one, "--yes")
    assert json.loads(run("list", "--field", field, "--status", "redriven", "--json"))["count"] == 2
    written.dead_letters.until(5)  # with their second attempts


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "elsewhere:0:1"], "expected dead-letters:PARTITION:OFFSET"),
        (["redrive"], "expected IDs or filters, or --all"),
        (["discard", "--all", "--model", "m"], "expected IDs or filters, or --all"),
        (["list", "--since", "yesterday"], "expected a time such as"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], says: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(dead_letters, [*arguments, "--data", str(tmp_path)])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
