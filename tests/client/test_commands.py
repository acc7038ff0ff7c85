"""`tidemill produce` and `tidemill feedback`, as a person types them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from cli.__main__ import main
from runtime.settings import Settings
from tests.client.conftest import MODEL, Answerer

pytestmark = pytest.mark.stack
Type = Callable[..., Result]


@pytest.fixture
def tidemill(settings: Settings, answerer: Answerer) -> Type:
    """Type a command against the test's broker, which the environment names."""

    def typed(*words: str, stdin: str = "") -> Result:
        return CliRunner(env=settings.environment()).invoke(main, words, input=stdin)

    return typed


def test_produce_with_wait_prints_the_prediction(tidemill: Type) -> None:
    done = tidemill("produce", MODEL, '{"x": 0.75}', "--wait")
    assert done.exit_code == 0, done.output
    assert re.fullmatch(r"red 0\.7500  version 1\.0  prediction [0-9a-f-]{36}\n", done.output)


def test_a_rejection_is_exit_code_1(tidemill: Type) -> None:
    done = tidemill("produce", MODEL, '{"x": ', "--wait", "20")
    assert (done.exit_code, done.output) == (1, "rejected: faulty: DecodeError\n")


def test_produce_reads_lines_and_answers_in_their_order(tidemill: Type) -> None:
    done = tidemill("produce", MODEL, "-", "--wait", "--json", stdin='{"x": 0.1}\n\n{"x": 0.9}\n{"x": 0.2}\n')
    assert done.exit_code == 0, done.output
    answers = [json.loads(line) for line in done.output.splitlines()]
    assert [answer["label"] for answer in answers] == ["blue", "red", "blue"]


def test_produce_without_wait_says_what_was_sent(tidemill: Type) -> None:
    done = tidemill("produce", MODEL, '{"x": 0.1}', "--key", "a")
    assert (done.exit_code, done.output) == (0, "1 request sent to colour\n")


@pytest.mark.parametrize(
    "said",
    [
        ("--label", "red"), ("--rating", "4"), ("--thumb", "up"), ("--correction", "blue"), ("--comment", "good"),
        ("--signal", "dwell_sec=2.5"),
    ],
)  # fmt: skip
def test_feedback_is_sent(tidemill: Type, said: tuple[str, str]) -> None:
    done = tidemill("feedback", MODEL, "--request", "4711", *said)
    assert (done.exit_code, done.output) == (0, "feedback sent to colour\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("feedback", MODEL, "--request", "1", "--label", "green"), "found 'green', expected blue, red"),
        (("feedback", MODEL, "--request", "1", "--rating", "9"), "9 is not in the range 1<=x<=5"),
        (("feedback", MODEL, "--request", "1", "--signal", "dwell"), "found 'dwell', expected NAME=VALUE"),
        (("feedback", MODEL, "--label", "red"), "expected either prediction_id or request_id"),
        (("feedback", "colors", "--request", "1", "--label", "red"), "no model 'colors'"),
        (("produce", "colors", "{}"), "no model 'colors'"),
        (("produce", MODEL, "{}", "--wait", "soon"), "'soon' is not a valid float range"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tidemill: Type, words: tuple[str, ...], line: str) -> None:
    done = tidemill(*words)
    assert done.exit_code == 2, done.output
    assert line in done.output
    assert "Traceback" not in done.output
