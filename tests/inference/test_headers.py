"""What headers say, whether or not the record before said the same."""

from __future__ import annotations

from confluent_kafka import Message

from inference.headers import Said, said
from runtime.headers import Headers

JSON: Headers = [("content-type", b"application/json")]
MSGPACK: Headers = [("content-type", b"application/msgpack")]


def records(*headers: Headers | None) -> list[Message]:
    return [
        Message(topic="requests.m", partition=0, offset=i, headers=given) for i, given in enumerate(headers)
    ]


def test_records_of_which_nothing_is_said_but_json_are_left_out() -> None:
    assert said(records(None, JSON, JSON, [], [("other", b"1")], None)) == {}


def test_each_record_has_what_its_own_headers_say() -> None:
    first: Headers = [*JSON, ("ce_id", b"a")]
    second: Headers = [("traceparent", b"00-1-2-01"), ("ce_id", b"b")]
    found = said(
        records(JSON, MSGPACK, MSGPACK, None, MSGPACK, first, first, second, JSON, [("content-type", b"x/y")])
    )
    msgpack = Said("msgpack", "application/msgpack")
    asked = Said("json", "application/json", "a")
    assert found == {
        1: msgpack, 2: msgpack, 4: msgpack, 5: asked, 6: asked, 7: Said("json", "", "b", "00-1-2-01"), 9: Said(None, "x/y"),
    }  # fmt: skip
