"""Options that several commands share."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Final

import click

from compose.embedded.running import DEFAULT_DATA_DIR

data_option = click.option(
    "--data", "data_dir", type=click.Path(path_type=Path, file_okay=False), default=DEFAULT_DATA_DIR,
    envvar="TIDEMILL_DATA", show_default=".tidemill/data", help="The stack's data folder.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")

_AGE: Final = re.compile(r"-?(\d+(?:\.\d+)?)([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Moment(click.ParamType):
    """A time, or how long ago it was; as milliseconds since 1970."""

    name = "time"
    expected: ClassVar[str] = (
        "a time such as 2026-01-31T12:00 (UTC unless it names a zone) or an age such as 90s, 15m, 1.5h, 7d (or -7d)"
    )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.read(value, datetime.now(UTC))
        except (ValueError, OverflowError):
            self.fail(f"found {value!r}, expected {self.expected}", param, ctx)

    def read(self, text: str, now: datetime) -> Any:
        """What `text` means; ValueError if it means nothing.

        >>> noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
        >>> at = Moment().read
        >>> at("2026-01-31T12:00Z", noon) == at("2026-01-31T13:00+01:00", noon) == at("2026-01-31T12:00", noon)
        True
        >>> at("2026-01-31T12:00", noon) - at("-1.5h", noon), at("1.5h", noon) == at("-1.5h", noon)
        (5400000, True)
        """
        if age := _AGE.fullmatch(text):
            at = now - timedelta(**{_UNITS[age[2]]: float(age[1])})
        else:
            at = datetime.fromisoformat(text)
            at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        return max(0, round(at.timestamp() * 1000))
