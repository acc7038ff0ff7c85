"""Dead letters: none before its time, and the same in Kafka and ClickHouse."""

from __future__ import annotations

from typing import cast

import pytest
from clickhouse_connect.driver.client import Client

from benchmarks.faults import letters
from benchmarks.faults.account import Account
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


class Warehouse:
    """ClickHouse, as far as it is asked here."""

    def __init__(self, *letters: tuple[int, int]) -> None:
        self.result_rows = letters

    def query(self, _sql: str, parameters: object) -> Warehouse:
        return self


@pytest.mark.parametrize(
    ("held", "wrong"),
    [
        ([(0, 1), (1, 5)], 0),
        ([(0, 1), (1, 5), (1, 6)], 0),  # given up since Kafka was read
        ([(0, 1), (1, 4), (1, 5)], 1),
        ([(0, 1), (1, 5), (1, 5)], 1),
        ([(0, 1)], 1),
        ([(0, 1), (1, 4)], 2),
    ],
)
def test_dead_letters_in_clickhouse_are_those_in_kafka(monkeypatch: pytest.MonkeyPatch, held: list[tuple[int, int]], wrong: int) -> None:  # fmt: skip
    monkeypatch.setattr(letters, "SINK_SEC", 0.0)
    account = Account()
    letters._compare_tables(cast(Client, Warehouse(*held)), {(0, 1), (1, 5)}, account)
    assert account.dead_letters_wrong == wrong
