"""When to halt a partition instead of dead-lettering on: too many rejected rows in a row, or too large a share of the newest.

So much at once is rather our fault (a wrong spec, a broken version) than the producers', and what is dead-lettered has to be redriven by a
person; what stays in Kafka is answered as soon as the cause is mended. Counted once a slice, over the positions of its rejected rows.
The tally travels in the metadata of the committed offset, so that neither a restart nor a rebalance begins a new allowance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from schemas.identity import MAX_TIMESTAMP_MS
from schemas.spec import DeadLetters

PARTS: Final = 16
"""The window moves on in parts of about this fraction of it."""
NO_POSITIONS: Final = np.zeros(0, np.int64)


class Part(NamedTuple):
    """Consecutive rows of a window."""

    rows: int
    rejected: int


class Tally(NamedTuple):
    """What is remembered of a partition's newest rows."""

    run: int = 0
    """Rejected rows in a row, up to the newest."""
    window: tuple[Part, ...] = ()

    @property
    def rows(self) -> int:
        """Rows in the window."""
        return sum(part.rows for part in self.window)

    @property
    def rejected(self) -> int:
        """Rejected rows in the window."""
        return sum(part.rejected for part in self.window)


NO_TALLY: Final = Tally()


def advance(tally: Tally, rows: int, rejected: NDArray[np.int64], limits: DeadLetters) -> tuple[Tally, str]:
    """The tally after a slice of `rows` rows, `rejected` at these positions (ascending); and which limit that crosses, "" for none."""
    longest, run = _runs(tally.run, rows, rejected)
    window = _moved(tally.window, Part(rows, len(rejected)), limits.halt_window_rows)
    after = Tally(run, window)
    if not len(rejected):
        return after, ""
    if limits.halt_after_consecutive and longest >= limits.halt_after_consecutive:
        return (
            after,
            f"{longest} rows in a row cannot be served (halt_after_consecutive = {limits.halt_after_consecutive})",
        )
    if after.rows >= limits.halt_window_rows and after.rejected > limits.halt_ratio * after.rows:
        return (
            after,
            f"{after.rejected} of the newest {after.rows} rows cannot be served (halt_ratio = {limits.halt_ratio:g})",
        )
    return after, ""


def counted(
    rows: Iterable[int],
    record: NDArray[np.int64],
    messages: Sequence[Message],
    start: int,
    pass_until_ms: int,
) -> NDArray[np.int64]:
    """Positions, from row `start` on, of the rejected `rows` (of the records `record`) that count: not those that a person let pass.

    A timestamp that is no time counts as the oldest, as it does for identity.
    """
    if pass_until_ms:
        rows = (row for row in rows if not _passes(messages[record[row]], pass_until_ms))
    return np.fromiter(rows, np.int64) - start


def _passes(message: Message, pass_until_ms: int) -> bool:
    stamp = message.timestamp()[1]
    return stamp <= pass_until_ms or stamp > MAX_TIMESTAMP_MS


def _runs(before: int, rows: int, rejected: NDArray[np.int64]) -> tuple[int, int]:
    """(longest run of rejected rows, run at the end), `before` having stood at the start.

    >>> _runs(3, 10, np.array([0, 1, 5, 8, 9]))
    (5, 2)
    """
    if not len(rejected):
        return 0, 0
    breaks = np.flatnonzero(np.diff(rejected) != 1)
    firsts = rejected[np.concatenate([[0], breaks + 1])]
    lasts = rejected[np.concatenate([breaks, [len(rejected) - 1]])]
    lengths = lasts - firsts + 1
    if firsts[0] == 0:
        lengths[0] += before
    return int(lengths.max()), int(lengths[-1]) if lasts[-1] == rows - 1 else 0


def _moved(window: tuple[Part, ...], new: Part, window_rows: int) -> tuple[Part, ...]:
    """The window with `new` at its end, without the oldest parts that a full window does not need."""
    if window and window[-1].rows < window_rows // PARTS:
        new = Part(window[-1].rows + new.rows, window[-1].rejected + new.rejected)
        window = window[:-1]
    window = (*window, new)
    rows = sum(part.rows for part in window)
    first = 0
    while rows - window[first].rows >= window_rows:
        rows -= window[first].rows
        first += 1
    return window[first:]


def encode_tally(tally: Tally) -> str:
    """For the metadata of an offset commit; "" if nothing is to be remembered.

    >>> encode_tally(Tally(2, (Part(100, 0), Part(50, 7)))), encode_tally(Tally(0, (Part(9, 0),)))
    ('2/7/150', '')
    """
    return f"{tally.run}/{tally.rejected}/{tally.rows}" if tally.run or tally.rejected else ""


def decode_tally(text: str) -> Tally:
    """What `encode_tally` wrote; an empty tally for anything else.

    >>> decode_tally('2/7/150'), decode_tally('')
    (Tally(run=2, window=(Part(rows=150, rejected=7),)), Tally(run=0, window=()))
    """
    numbers = text.split("/")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        return NO_TALLY
    run, rejected, rows = map(int, numbers)
    return Tally(run, (Part(rows, rejected),))
