"""The exception tree. Overload, poison and outage are three different things and never end in the same branch: overload is none of these,
who has too much at once pauses consumption.

TidemillError
├── UserError            a person's mistake: one clear line, an exit code, no traceback
│   ├── SpecError        a model spec that cannot be used
│   └── UnknownModel     a model name for which there is no spec
├── Rejection            poison: this record can never be served; it is answered, dead-lettered and passed over
├── Outage               a dependency is away: retry, keep the record, never dead-letter it
├── Fenced               another instance owns this identity now: stop at once, write nothing
└── ArtifactError        an artifact that is missing, half-written or altered: refuse the version, keep serving the others
"""

from __future__ import annotations

from typing import Self


class TidemillError(Exception):
    """Base of all errors that Tidemill raises on purpose."""


class UserError(TidemillError):
    """A person's mistake. `str(error)` is one line that names what, where and what was expected."""

    exit_code = 2


class SpecError(UserError):
    """A model spec that cannot be used; the line names the file, the key and what was expected."""


class UnknownModel(UserError):
    """A model name for which there is no spec."""


class Rejection(TidemillError):
    """A record that can never be served: poison.

    `reason` is one of `schemas.requests.Reason`; `field` is the path in the record ("" if it is the whole record);
    `expected` says what would have been accepted.
    """

    def __init__(self, reason: str, field: str = "", expected: str = "", detail: str = "") -> None:
        self.reason = reason
        self.field = field
        self.expected = expected
        self.detail = detail
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """One line: what is wrong, where, and what was expected."""
        where = f"{self.field}: " if self.field else ""
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{where}{self.detail or self.reason}{expected}"

    def bare(self) -> Self:
        """Itself, to be kept: an exception that was raised holds all frames that it went through, and whatever they hold."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self


class Outage(TidemillError):
    """A dependency (Kafka, Triton, ClickHouse) is away: retried for ever, never dead-lettered."""


class Fenced(TidemillError):
    """Another instance took over this identity: stop at once, write nothing more."""


class ArtifactError(TidemillError):
    """An artifact that is missing, half-written or altered."""
