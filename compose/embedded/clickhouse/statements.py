"""Where an HTTP server has to touch SQL: an INSERT's data goes to INFILE, a SELECT's result to OUTFILE.

The engine's own parser decides what a statement *is* (see ``access``); the lexer here only finds the
clauses FORMAT, VALUES, SETTINGS at nesting depth zero, past strings, comments and quoted names.
Source of the grammar: ClickHouse, ``ParserInsertQuery`` and ``ParserQueryWithOutput``.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_TOKEN = re.compile(
    rb"""
      (?P<space>   \s+ | --[^\n]*(?:\n|$) | \#[ !][^\n]*(?:\n|$) | /\*.*?(?:\*/|$) )
    | (?P<quoted>  '(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" | `(?:[^`\\]|\\.|``)*` | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
    | (?P<word>    [A-Za-z0-9_]+ )
    | (?P<other>   . )
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    text: bytes  # upper case if it is a word
    start: int
    end: int
    depth: int


class Insert(NamedTuple):
    """``head FROM INFILE … settings FORMAT format`` is the statement; its data start at ``data_start``."""

    head: str
    settings: str
    format: str
    data_start: int

    def from_infile(self, path: str) -> str:
        return f"{self.head} FROM INFILE '{path}' COMPRESSION 'none' {self.settings} FORMAT {self.format}"


class Output(NamedTuple):
    """A query split where INTO OUTFILE belongs; ``format`` is None where the query names none."""

    head: str
    format: str | None
    tail: str

    def into_outfile(self, path: str, output_format: str, compression: str) -> str:
        # A line break, because the head may end in a comment.
        target = f"INTO OUTFILE '{path}' TRUNCATE COMPRESSION '{compression}'"
        return f"{self.head}\n{target} FORMAT {output_format}{self.tail}"


def tokens(sql: bytes) -> Iterator[Token]:
    """The significant tokens of ``sql`` with their depth in parentheses, brackets and braces."""
    depth = 0
    for match in _TOKEN.finditer(sql):
        if match.lastgroup == "space":
            continue
        text = match.group()
        if text in (b")", b"]", b"}"):
            depth -= 1
        yield Token(text.upper() if match["word"] else text, match.start(), match.end(), depth)
        if text in (b"(", b"[", b"{"):
            depth += 1


def find_insert(sql: bytes) -> Insert | None:
    """The INSERT in ``sql`` whose data follow it inline (VALUES or FORMAT), or None.

    ``sql`` may be the beginning of a larger body: nothing behind the data's start is looked at.
    """
    stream = tokens(sql)
    first, second = next(stream, None), next(stream, None)
    if first is None or second is None or (first.text, second.text) != (b"INSERT", b"INTO"):
        return None
    # A table may be called `format` or `values`: what stands right behind INTO, TABLE, FUNCTION or a dot is a name.
    previous, settings_start = second, None
    for token in stream:
        is_name = previous.text in (b"INTO", b"TABLE", b"FUNCTION", b".")
        previous = token
        if token.depth or is_name:
            continue
        if token.text in (b"SELECT", b"WITH", b"FROM", b"WATCH", b";"):
            return None
        if token.text == b"SETTINGS":
            settings_start = token.start
        elif token.text in (b"VALUES", b"FORMAT"):
            head_end = token.start if settings_start is None else settings_start
            name, data_start = "Values", token.end
            if token.text == b"FORMAT":
                word = re.compile(rb"\s*(\w+)[ \t\f]*;?[ \t\f]*\r?\n?").match(sql, token.end)
                if word is None:
                    return None
                name, data_start = word[1].decode(), word.end()
            return Insert(
                sql[:head_end].decode("utf-8", "surrogateescape").rstrip(),
                sql[head_end : token.start].decode("utf-8", "surrogateescape").rstrip(),
                name,
                data_start,
            )
    return None


def find_output(sql: str) -> Output:
    """Split one query with a result at its last FORMAT clause, or at its end."""
    raw = sql.encode("utf-8", "surrogateescape")
    found = [t for t in tokens(raw) if t.text != b";"]
    end = found[-1].end if found else 0

    def text(start: int, stop: int) -> str:
        return raw[start:stop].decode("utf-8", "surrogateescape")

    for at in range(len(found) - 2, -1, -1):
        token = found[at]
        after = found[at + 2].text if at + 2 < len(found) else None
        if token.text == b"FORMAT" and token.depth == 0 and after in (None, b"SETTINGS"):
            name = text(found[at + 1].start, found[at + 1].end)
            return Output(text(0, token.start), name, " " + text(found[at + 1].end, end))
    return Output(text(0, end), None, "")
