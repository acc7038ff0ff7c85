"""ClickHouse's errors: their text, their codes, and the HTTP status a ClickHouse server gives each.

Source of the status table: ClickHouse ``src/Server/HTTP/exceptionCodeToHTTPStatus.cpp``.
"""

import re

_MESSAGE = re.compile(r"Code: (\d+)\. DB::\w+: (.*)", re.DOTALL)
_NAME = re.compile(r"^(.*?)\s*\((\w+)\)(?: \(version [^)]*\)+)?\.?\s*$", re.DOTALL)
_UNKNOWN_EXCEPTION = 1002

_STATUS = {
    code: status
    for status, codes in {
        400: (
            6,
            8,
            15,
            25,
            26,
            27,
            36,
            37,
            38,
            41,
            44,
            53,
            62,
            72,
            117,
            123,
            167,
            168,
            223,
            321,
            376,
            427,
            441,
            675,
            676,
        ),
        401: (194,),
        403: (192, 193, 497, 512, 516),
        404: (46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511),
        408: (159,),
        411: (381,),
        413: (229,),
        415: (779,),
        501: (48,),
        503: (76, 202, 209, 439),  # 202 is ours: too many queries at once is worth a retry
    }.items()
    for code in codes
}


class ClickHouseError(Exception):
    """An error as ClickHouse reports it: ``Code: 60. DB::Exception: … (UNKNOWN_TABLE)``."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message} ({name})")
        self.code = code

    @property
    def http_status(self) -> int:
        return _STATUS.get(self.code, 500)

    @classmethod
    def parse(cls, text: str) -> "ClickHouseError":
        """Read the engine's text; the engine sometimes wraps an error in another with the same code."""
        found = _MESSAGE.search(text)
        if found is None:
            return cls(_UNKNOWN_EXCEPTION, "UNKNOWN_EXCEPTION", text)
        code, message = int(found[1]), found[2]
        name = "UNKNOWN_EXCEPTION"
        while ending := _NAME.match(message):
            message, name = ending[1], ending[2]
            inner = _MESSAGE.match(message)
            if inner is None:
                break
            message = inner[2]
        return cls(code, name, message)


def readonly(user: str) -> ClickHouseError:
    return ClickHouseError(164, "READONLY", f"{user}: Cannot execute query in readonly mode.")
