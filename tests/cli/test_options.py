"""How a person writes a time."""

from __future__ import annotations

from datetime import UTC, datetime

import click
import pytest

from cli.options import Moment
from cli.replay import Bounds

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOON_MS = 1_769_860_800_000


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("2026-01-31T12:00", NOON_MS),
        ("2026-01-31T13:00+01:00", NOON_MS),
        ("90s", NOON_MS - 90_000),
        ("-90s", NOON_MS - 90_000),
        ("1.5h", NOON_MS - 5_400_000),
        ("-1d", NOON_MS - 86_400_000),
    ],
)
@pytest.mark.parametrize("kind", [Moment(), Bounds()])
def test_every_option_that_takes_a_time_takes_the_same_times(kind: Moment, text: str, at_ms: int) -> None:
    assert kind.read(text, NOON) == at_ms


def test_the_ends_of_a_replay_may_be_offsets_too() -> None:
    assert [Bounds().read(text, NOON) for text in ("0:12,1:7", "earliest", "now")] == [
        {0: 12, 1: 7},
        "earliest",
        "latest",
    ]


@pytest.mark.parametrize(("kind", "also"), [(Moment(), ""), (Bounds(), "offsets")])
def test_what_is_no_time_says_what_is_one(kind: Moment, also: str) -> None:
    with pytest.raises(click.BadParameter, match=f"found 'yesterday', expected a time such as.*{also}"):
        kind.convert("yesterday", None, None)
