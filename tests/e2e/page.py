"""What a page of the documentation tells its reader to write and to run, so that a test can do it to the letter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_FENCE: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED: Final = re.compile(r"`([\w./-]+)`:\s*\Z")


def files(page: Path) -> dict[str, str]:
    """Path → text of each block that stands below a line with nothing but its path and a colon."""
    text = page.read_text(encoding="utf-8")
    found = {}
    for block in _FENCE.finditer(text):
        named = _NAMED.search(text, 0, block.start())
        if named is not None:
            found[named[1]] = block[2]
    return found


def commands(page: Path) -> list[str]:
    """The shell blocks, in order."""
    return [block[2] for block in _FENCE.finditer(page.read_text(encoding="utf-8")) if block[1] == "sh"]
