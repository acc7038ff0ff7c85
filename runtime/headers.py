"""Record headers: a list of (name, value), names may repeat."""

from __future__ import annotations

from typing import TypeAlias

Headers: TypeAlias = list[tuple[str, str | bytes | None]]


def pairs(headers: Headers | dict[str, str | bytes | None] | None) -> Headers:
    """A record's headers as a list, whatever the client gave."""
    if headers is None:
        return []
    return list(headers.items()) if isinstance(headers, dict) else headers


def text(headers: Headers, name: str) -> str:
    """The first value of `name` as text, "" if there is none; bytes that are not UTF-8 are replaced."""
    for found, value in headers:
        if found == name and value is not None:
            return value if isinstance(value, str) else value.decode("utf-8", "replace")
    return ""
