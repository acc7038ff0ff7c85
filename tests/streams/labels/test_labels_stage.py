"""The labels stage as its readers see it: outcomes and dead letters on the topics, whatever order things come in."""

from __future__ import annotations

import contextlib
import math
import signal
import statistics
import time
from collections.abc import Iterator
from functools import partial

import msgspec
import pytest

from runtime.positions import EndOffsets
from runtime.settings import Settings
from schemas import dead_letters
from schemas.events import Alert
from schemas.feedback import Feedback
from schemas.topics import ALERTS, STATE
from tests.compose.clickhouse_server import ServerProcess
from tests.reader import Reader
from tests.retention import drop_before
from tests.services import Service
from tests.streams.labels.loop import MODEL, Loop
from tests.waiting import until

pytestmark = pytest.mark.stack


def test_a_label_becomes_one_outcome_per_arm(loop: Loop, service: Service) -> None:
    (prediction,) = loop.predict([0.8], arms=("champion", "major"))
    loop.sink()
    loop.label("red", prediction_id=prediction, at_ms=1_700_000_000_000, feedback_id="first")
    champion, major = until(lambda: loop.outcomes([prediction]), "outcomes of the label")
    assert (champion["arm"], champion["role"], champion["version"]) == ("champion", "live", "1.0")
    assert (major["arm"], major["role"], major["version"]) == ("major", "shadow", "1.1")
    assert champion["outcome_id"] != major["outcome_id"]
    assert champion["loss"] == pytest.approx(-math.log(0.8), rel=1e-5)
    assert champion["brier"] == pytest.approx(2 * 0.2**2, rel=1e-5)
    assert (champion["truth"], champion["label"], champion["correct"]) == ("red", "red", 1)
    assert (champion["revision"], champion["previous_truth"], champion["previous_loss"]) == (0, "", 0.0)
    assert champion["labeled_at"].timestamp() == 1_700_000_000
    assert champion["entity"] == "someone"
    assert champion["segments"] == ["x=1"]


def test_a_label_whose_prediction_is_there_is_joined_within_50_ms(loop: Loop, service: Service) -> None:
    predictions = loop.predict([0.8] * 12)
    loop.sink()
    delays_ms = []
    for prediction in predictions:
        loop.label("red", prediction_id=prediction)
        (outcome,) = until(partial(loop.outcomes, [prediction]), "outcome")
        delays_ms.append(outcome["joined_at"].timestamp() * 1000 - outcome["labeled_at"].timestamp() * 1000)
    assert statistics.median(delays_ms) <= 50, delays_ms


@contextlib.contextmanager
def frozen(engine: ServerProcess) -> Iterator[None]:
    """ClickHouse answers nobody within the block."""
    engine.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        engine.process.send_signal(signal.SIGCONT)


def test_a_label_on_what_was_just_observed_is_joined_and_revised_without_clickhouse(
    loop: Loop, service: Service, engine: ServerProcess
) -> None:
    service.wait_ready()  # it reads on in `observations` from here
    known, again, named, asked = loop.predict([0.8] * 4, ["", "", "lately", ""], arms=("champion", "major"))
    # The first may have to wait for its observation, which the four share. The second's transaction begins when the first's is over.
    for each in (known, again):
        loop.label("red", prediction_id=each)
        until(partial(loop.outcomes, [each]), "an outcome: the stage has observed it")
    waiting = loop.end_of(STATE.name)
    with frozen(engine):
        loop.label("red", request_id="lately")
        loop.label("red", prediction_id=asked)
        until(lambda: len(loop.outcomes([named, asked])) == 4, "outcomes of both arms")
        loop.label("blue", prediction_id=asked)
        until(lambda: len(loop.outcomes([asked])) == 4, "revised outcomes")
    assert loop.end_of(STATE.name) == waiting, "a label had to wait"
    there = [(row["arm"], row["revision"], row["truth"]) for row in loop.outcomes([named, asked])]
    assert there == [
        ("champion", 0, "red"), ("major", 0, "red"),
        ("champion", 0, "red"), ("major", 0, "red"), ("champion", 1, "blue"), ("major", 1, "blue"),
    ]  # fmt: skip
    assert loop.clickhouse.query(f"SELECT count() FROM predictions WHERE prediction_id IN ('{named}', '{asked}')").result_rows == [(0,)]  # fmt: skip


def test_a_label_that_comes_just_before_its_answer_is_joined_with_the_answer(
    loop: Loop, service: Service
) -> None:
    requested_ms = time.time_ns() // 1_000_000
    loop.label("blue", request_id="on its way")
    (prediction,) = loop.predict([0.3], request_ids=["on its way"], requested_ms=requested_ms)
    (outcome,) = until(lambda: loop.outcomes([prediction]), "outcome, without the sink")
    assert outcome["truth"] == "blue"


def test_an_early_label_waits_for_its_prediction(loop: Loop, service: Service) -> None:
    loop.label("blue", request_id="early")
    loop.sink()
    (prediction,) = loop.predict([0.3], request_ids=["early"])
    assert loop.outcomes([prediction]) == []
    loop.sink()
    (outcome,) = until(lambda: loop.outcomes([prediction]), "outcome of the early label")
    assert (outcome["truth"], outcome["correct"]) == ("blue", 1)


def test_a_request_id_used_twice_means_the_newest_prediction_before_the_feedback(
    loop: Loop, service: Service
) -> None:
    now_ms = time.time_ns() // 1_000_000
    (old,) = loop.predict([0.3], request_ids=["twice"], requested_ms=now_ms - 3000)
    (meant,) = loop.predict([0.3], request_ids=["twice"], requested_ms=now_ms - 2000)
    (new,) = loop.predict([0.3], request_ids=["twice"], requested_ms=now_ms)
    loop.sink()
    feedback = Feedback(kind="label", value="red", request_id="twice")
    loop.tell(msgspec.json.encode(feedback), at_ms=now_ms - 1000)
    until(lambda: loop.outcomes([meant]), "outcome")
    assert loop.outcomes([old, new]) == []


def test_a_newer_label_revises_and_an_older_one_changes_nothing(loop: Loop, service: Service) -> None:
    (prediction,) = loop.predict([0.8])
    loop.sink()
    loop.label("red", prediction_id=prediction, at_ms=2000)
    until(lambda: loop.outcomes([prediction]), "outcome")
    loop.label("blue", prediction_id=prediction, at_ms=1000)
    loop.label("red", prediction_id=prediction, at_ms=2000)
    loop.label("blue", prediction_id=prediction, at_ms=3000)
    first, second = until(lambda: len(found := loop.outcomes([prediction])) > 1 and found, "revised outcome")
    assert (first["truth"], second["truth"]) == ("red", "blue")
    assert (second["revision"], second["previous_truth"], second["correct"]) == (1, "red", 0)
    assert second["previous_loss"] == pytest.approx(first["loss"])
    assert second["previous_brier"] == pytest.approx(first["brier"])
    assert second["loss"] == pytest.approx(-math.log(0.2), rel=1e-5)


def test_what_was_joined_is_known_after_a_restart(loop: Loop, service: Service) -> None:
    (prediction,) = loop.predict([0.8])
    loop.sink()
    loop.label("red", prediction_id=prediction, at_ms=2000)
    until(lambda: loop.outcomes([prediction]), "outcome")
    service.restart()
    loop.label("blue", prediction_id=prediction, at_ms=1000)
    loop.label("red", prediction_id=prediction, at_ms=2000)
    loop.label("blue", prediction_id=prediction, at_ms=3000)
    loop.sink()
    _, second = until(lambda: len(found := loop.outcomes([prediction])) > 1 and found, "revised outcome")
    assert (second["revision"], second["truth"], second["previous_truth"]) == (1, "blue", "red")


def test_feedback_that_kafka_dropped_is_alarmed_about_and_what_follows_is_joined(
    settings: Settings, loop: Loop, service: Service
) -> None:
    before, gone, after = loop.predict([0.8] * 3)
    loop.sink()
    loop.label("red", prediction_id=before)
    until(lambda: loop.outcomes([before]), "outcome")
    loop.sink()
    service.kill()
    alerts, topic = Reader(settings, ALERTS.name), f"feedback.{MODEL}"
    starts = EndOffsets(settings).of([topic])
    loop.label("red", prediction_id=gone)
    loop.label("red", prediction_id=after)
    ((place, end),) = EndOffsets(settings).of([topic]).items() - starts.items()
    drop_before(settings, place, end - 1)
    service.start()
    until(lambda: loop.outcomes([after]), "outcome of what follows")
    assert loop.outcomes([gone]) == []
    (alert,) = [msgspec.json.decode(m.value() or b"", type=Alert) for m in alerts.until(1)]
    alerts.close()
    assert (alert.kind, alert.subject) == ("records_missing", f"{topic}:{place[1]}")
    assert (alert.evidence["first_offset"], alert.evidence["end_offset"]) == (end - 2, end - 1)


def test_an_unknown_id_is_dead_lettered_once_and_a_later_prediction_revives_it(
    loop: Loop, service: Service
) -> None:
    feedback = msgspec.json.encode(Feedback(kind="label", value="red", request_id="never seen"))
    loop.tell(feedback, key=b"its key")
    loop.sink()
    (headers,) = until(lambda: loop.letters(feedback), "dead letter of the orphan")
    assert headers[dead_letters.REASON] == "orphan_feedback"
    assert headers[dead_letters.FIELD] == "request_id"
    assert headers[dead_letters.TOPIC] == "feedback.colour"
    (prediction,) = loop.predict([0.9], request_ids=["never seen"])
    loop.sink()
    # A restart reads the orphan from the state topic and tries it soon.
    service.restart()
    until(lambda: loop.outcomes([prediction]), "outcome of the revived label", 90)
    assert len(loop.letters(feedback)) == 1


@pytest.mark.parametrize(
    ("value", "reason", "field"),
    [
        (b'{"kind": "label"', "undecodable", ""),
        (b'{"kind":"rating","value":9,"prediction_id":"0190a0a0-0000-7000-8000-000000000001"}', "out_of_range", "value"),
        (b'{"kind":"label","value":"green","request_id":"a"}', "unknown_category", "value"),
        (b'{"kind":"label","value":"red"}', "missing_field", "prediction_id"),
        (b'{"kind":"label","value":"red","prediction_id":"7"}', "wrong_type", "prediction_id"),
        (b"\xff\x00", "undecodable", ""),
    ],
)  # fmt: skip
def test_bad_feedback_is_dead_lettered_and_its_neighbours_are_joined(
    loop: Loop, service: Service, value: bytes, reason: str, field: str
) -> None:
    before, after = loop.predict([0.8, 0.8])
    loop.sink()
    loop.label("red", prediction_id=before)
    loop.tell(value)
    loop.label("red", prediction_id=after)
    until(lambda: len(loop.outcomes([before, after])) == 2, "outcomes around the bad record")
    (headers,) = until(lambda: loop.letters(value), "dead letter")
    assert (headers[dead_letters.REASON], headers[dead_letters.FIELD]) == (reason, field)


def test_ratings_thumbs_comments_and_signals_pass(loop: Loop, service: Service) -> None:
    (prediction,) = loop.predict([0.8])
    loop.sink()
    for kind, value in (("rating", 4), ("thumb", "up"), ("comment", "good"), ("signal", 2.5)):
        loop.tell(
            msgspec.json.encode(
                {"kind": kind, "value": value, "prediction_id": prediction, "name": "dwell_sec"}
            )
        )
    loop.tell(msgspec.json.encode(Feedback(kind="correction", value="blue", prediction_id=prediction)))
    (outcome,) = until(lambda: loop.outcomes([prediction]), "outcome of the correction")
    assert outcome["truth"] == "blue"
