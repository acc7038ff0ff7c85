"""Electricity prices of New South Wales, 1996 to 1998, a row each half hour (Elec2: Harries, 1999).

Will the price rise or fall against its mean over the last day? The classic stream with drift; the values are scaled to 0 … 1 at the
source. Labels come a day late (48 rows): with none, repeating the last label would already score 0.853.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Final

from scenarios.scenario import Scenario, read_text
from schemas.errors import UserError

FILE: Final = "elec.csv"
SHA256: Final = "ebdfe5480ae25a43a7d054286135e3a9484697a2850d5158a333b1578c28bb97"
FEATURES: Final = {
    "period": "feat_1",
    "nswprice": "feat_2",
    "nswdemand": "feat_3",
    "vicprice": "feat_4",
    "vicdemand": "feat_5",
    "transfer": "feat_6",
}
"""Feature of the model → column of the file."""
CLASSES: Final = {"0": "down", "1": "up"}
FIRST_SHARE: Final = 0.1
LABEL_DELAY_ROWS: Final = 48
HALF_HOURS: Final = 48
ENTITIES: Final = 16


def load(folder: Path) -> Scenario:
    """The scenario from the data sets in `folder`. An entity is a third of a day's half hours: the slot modulo 16."""
    rows = list(csv.DictReader(io.StringIO(read_text(folder / FILE))))
    try:
        columns = {name: [float(row[column]) for row in rows] for name, column in FEATURES.items()}
        labels = [CLASSES[row["target"]] for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / FILE}: not Elec2 as expected: {error!r}") from None
    slots = [round(period * (HALF_HOURS - 1)) for period in columns["period"]]
    return Scenario(
        name="electricity",
        columns=columns,
        labels=labels,
        entities=[f"slot-{slot % ENTITIES:02d}" for slot in slots],
        parts=["" for _ in rows],
        first=int(len(rows) * FIRST_SHARE),
        label_delay_rows=LABEL_DELAY_ROWS,
    )
