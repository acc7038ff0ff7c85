"""What is sent follows from the seed, and so does what must come of it."""

import msgspec
import numpy as np
import pytest

from benchmarks.faults import rows
from inference.decode import Decoder
from schemas.errors import Rejection
from schemas.feedback import decode_feedback
from schemas.spec import ModelSpec, decode_spec

ROWS = np.arange(20_000)
SEED = 3


WIDE = 9


def spec(width: int = rows.LEAST_WIDTH) -> ModelSpec:
    return decode_spec(rows.Served(orphan_after_sec=5, width=width).spec_toml(), "the harness's spec")


def test_a_run_chooses_of_its_model() -> None:
    chosen = decode_spec(rows.Served(7, WIDE, 3000).spec_toml(), "the harness's spec")
    assert (chosen.feedback.orphan_after_sec, chosen.serve.latency_budget_ms) == (7, 3000)
    assert chosen.numbers == tuple(rows.names(WIDE))


def test_poison_comes_at_its_rate_and_in_every_kind() -> None:
    kinds = rows.poison_kinds(SEED, np.arange(200_000))
    share = float((kinds != rows.GOOD).mean())
    assert 0.9 < share * 1e6 / rows.POISON_PER_MILLION < 1.1
    assert set(kinds[kinds != rows.GOOD].tolist()) == set(range(len(rows.POISON)))


@pytest.mark.parametrize("width", [rows.LEAST_WIDTH, WIDE])
def test_a_row_is_the_same_wherever_its_block_begins(width: int) -> None:
    assert rows.values(SEED, 100, 200, width)[37:] == rows.values(SEED, 137, 200, width)


@pytest.mark.parametrize("width", [rows.LEAST_WIDTH, WIDE])
def test_good_rows_are_admitted_and_poison_is_refused_for_its_reason(width: int) -> None:
    values = rows.values(SEED, 0, len(ROWS), width)
    kinds = rows.poison_kinds(SEED, ROWS)
    decoded = Decoder(spec(width)).decode(list(values), {})
    by_value = {"unsupported_content_type", "oversized"}  # told by headers and size, before the value is read
    for row in np.flatnonzero(kinds != rows.GOOD).tolist():
        reason = rows.POISON[int(kinds[row])].reason
        if reason not in by_value:
            assert decoded.rejections[row].reason == reason, values[row]
    assert not set(decoded.rejections) & set(np.flatnonzero(kinds == rows.GOOD).tolist())


def test_bad_feedback_is_refused_for_its_reason() -> None:
    for reason, value in rows.BAD_FEEDBACK:
        try:
            decode_feedback(value % 7, spec())
        except Rejection as rejection:
            assert rejection.reason == reason
        else:
            raise AssertionError(value)


def test_the_feedback_that_holds_is_the_newest_of_its_case() -> None:
    cases = np.arange(len(rows.CASES))
    for case, number in zip(cases.tolist(), rows.final_numbers(cases).tolist(), strict=True):
        newest = max(rows.CASES[case], key=lambda said: said.at)
        assert newest.number == number
    assert set(rows.cases(SEED, ROWS).tolist()) == {rows.NO_CASE, *range(len(rows.CASES))}


@pytest.mark.parametrize("width", [rows.LEAST_WIDTH, WIDE])
def test_features_are_those_that_are_sent(width: int) -> None:
    good = np.flatnonzero(rows.poison_kinds(SEED, ROWS) == rows.GOOD)[:50]
    numbers = rows.millionths(SEED, good, width) / 1e6
    assert len(np.unique(numbers)) > 0.99 * numbers.size, "no two are drawn alike"
    for row, expected in zip(good.tolist(), numbers.tolist(), strict=True):
        sent = msgspec.json.decode(rows.values(SEED, row, row + 1, width)[0])["features"]
        assert sent == dict(zip(rows.names(width), expected, strict=True))


def test_requests_are_json_that_names_the_row() -> None:
    kinds = rows.poison_kinds(SEED, ROWS)
    row = int(np.flatnonzero(kinds == rows.GOOD)[0])
    assert msgspec.json.decode(rows.values(SEED, row, row + 1)[0])["request_id"] == str(row)
