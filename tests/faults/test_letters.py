"""A label may not be given up before its time."""

import pytest

from benchmarks.faults.letters import is_early
from runtime.headers import Headers
from schemas import dead_letters as names


@pytest.mark.parametrize(
    ("reason", "died_ms", "early"),
    [("orphan_feedback", 20_999, True), ("orphan_feedback", 21_000, False), ("undecodable", 1_001, False)],
)
def test_a_label_given_up_before_its_time_is_noticed(reason: str, died_ms: int, early: bool) -> None:
    headers: Headers = [
        (names.REASON, reason.encode()), (names.TIMESTAMP_MS, b"1000"), (names.DIED_AT_MS, str(died_ms).encode()),
    ]  # fmt: skip
    assert is_early(headers, orphan_after_sec=20) is early
