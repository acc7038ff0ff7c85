"""Our headers stand behind the original's and are told from them, whatever those are called."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.dead_letters import origin_headers, read_origin, split
from runtime.headers import Headers
from schemas.dead_letters import ATTEMPT, OFFSET, ORIGIN_HEADERS, TOPIC_ID, Origin
from schemas.errors import Rejection

ORIGIN = Origin(
    topic="requests.m",
    topic_id=uuid.UUID(int=7),
    partition=3,
    offset=41,
    timestamp_ms=1_700_000_000_000,
    attempt=2,
)
names = st.sampled_from([*ORIGIN_HEADERS, "tidemill-else", "content-type", ""])
headers = st.lists(st.tuples(names, st.none() | st.binary(max_size=4)), max_size=12)


@given(headers)
def test_what_a_producer_sent_comes_back_as_it_was(original: list[tuple[str, bytes | None]]) -> None:
    sent: Headers = [*original]
    found, ours = split([*sent, *origin_headers(ORIGIN)], ORIGIN_HEADERS)
    assert found == sent
    assert read_origin(ours) == ORIGIN


@pytest.mark.parametrize(
    ("name", "value"),
    [(TOPIC_ID, "no uuid"), (OFFSET, "-1"), (OFFSET, "x"), (ATTEMPT, "256"), (ATTEMPT, "-1")],
)
def test_an_origin_that_cannot_be_one_is_refused(name: str, value: str) -> None:
    ours = {key: text.decode() for key, text in origin_headers(ORIGIN) if isinstance(text, bytes)}
    with pytest.raises(Rejection) as refused:
        read_origin({**ours, name: value})
    assert refused.value.reason == "bad_origin"


def test_a_missing_header_is_named() -> None:
    with pytest.raises(Rejection, match=r"tidemill-topic:"):
        read_origin({})
