"""What a record's headers say of its request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from confluent_kafka import Message

from runtime.headers import Headers, pairs, text
from schemas.formats import Format, format_of
from schemas.requests import CONTENT_TYPE, TRACEPARENT

CLOUDEVENTS_ID: Final = "ce_id"


class Said(NamedTuple):
    """The headers that mean something to the gateway; "" where there is none of the name."""

    format: Format | None
    """None: of no format of a request."""
    content_type: str = ""
    request_id: str = ""
    """CloudEvents' id."""
    traceparent: str = ""


def said(messages: Sequence[Message]) -> dict[int, Said]:
    """Index → what the headers say, of the records whose headers say more than that the request is JSON.

    Most producers write the same on every record: what is like the one before is not read again.
    """
    headers = [message.headers() for message in messages]
    if not any(headers):
        return {}
    found = {}
    given: object = None
    meaning = None
    for index, own in enumerate(headers):
        if own != given:
            given, meaning = own, _read(pairs(own))
            if meaning.format == "json" and not meaning.request_id and not meaning.traceparent:
                meaning = None
        if meaning is not None:
            found[index] = meaning
    return found


def joined(parts: Iterable[tuple[int, Mapping[int, Said]]]) -> dict[int, Said]:
    """What is said of records that follow each other: for each part their number, and what is said of them.

    >>> joined([(10, {}), (5, {2: Said("msgpack")})])
    {12: Said(format='msgpack', content_type='', request_id='', traceparent='')}
    """
    found: dict[int, Said] = {}
    start = 0
    for records, said_of in parts:
        found |= {start + index: one for index, one in said_of.items()}
        start += records
    return found


def _read(headers: Headers) -> Said:
    content_type = text(headers, CONTENT_TYPE)
    return Said(
        format_of(content_type), content_type, text(headers, CLOUDEVENTS_ID), text(headers, TRACEPARENT)
    )
