"""Our headers stand behind the original's and are told from them, whatever those are called."""

from __future__ import annotations

import uuid
from typing import Any, cast

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from runtime.dead_letters import COPIED_BYTES, origin_headers, produce_dead_letter, read_origin, split
from runtime.headers import Headers
from runtime.transactions import TransactionalProducer
from schemas.dead_letters import (
    ATTEMPT,
    DEAD_LETTER_HEADERS,
    OFFSET,
    OMITTED_BYTES,
    ORIGIN_HEADERS,
    TOPIC_ID,
    Origin,
)
from schemas.errors import Rejection
from schemas.topics import DEAD_LETTERS

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


class Written:
    """Takes what a transaction would."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes | None, bytes | None, Headers]] = []

    def produce(self, topic: str, value: bytes | None, key: bytes | None, headers: Headers) -> None:
        assert topic == DEAD_LETTERS.name
        self.records.append((key, value, headers))


@pytest.mark.parametrize(("size_bytes", "copied"), [(1000, True), (COPIED_BYTES, False)])
def test_an_original_too_large_to_be_copied_is_named_and_left_out(size_bytes: int, copied: bool) -> None:
    """A compressed record may be of any size: its dead letter must still fit into the topic, or the stage would try it for ever."""
    written = Written()
    value = bytes(size_bytes)
    original: Headers = [("content-type", b"x")]
    message = Message(
        topic="requests.m", partition=0, offset=5, key=b"k", value=value, timestamp=(1, 7),
        headers=cast("Any", original),
    )  # fmt: skip
    produce_dead_letter(
        cast("TransactionalProducer", written), message, Rejection("oversized"),
        stage="gateway", model="m", topic_id=uuid.UUID(int=7), now_ms=9,
    )  # fmt: skip
    ((key, found, headers),) = written.records
    rest, ours = split(headers, DEAD_LETTER_HEADERS)
    assert read_origin(ours).offset == 5
    if copied:
        assert (key, found, rest) == (b"k", value, original)
        assert OMITTED_BYTES not in ours
    else:
        assert (key, found, rest) == (None, b"", [])
        assert int(ours[OMITTED_BYTES]) > COPIED_BYTES
