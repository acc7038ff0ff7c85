"""Fifty years of weather at one station, a row a day (NOAA, Offutt Air Force Base, 1949 to 1999: Elwell and Polikar, 2011).

Did it rain? Slow drift, and baselines that are not easily beaten: repeating the last label scores 0.680, always `dry` 0.686. It comes
without a model: docs/models.md declares one. Labels come a month late (30 rows).
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Final

from scenarios.scenario import Scenario, read_text
from schemas.errors import UserError

FILE: Final = "weather.csv"
SHA256: Final = "3c38f05bdc5c4cb115f122414c66976e3662c875d96d7199d9e47fc46aff150e"
FEATURES: Final = {
    "temperature": "feat_1",
    "dew_point": "feat_2",
    "pressure": "feat_3",
    "visibility": "feat_4",
    "wind": "feat_5",
    "gust": "feat_6",
    "warmest": "feat_7",
    "coldest": "feat_8",
}
"""Feature of the model → column of the file."""
CLASSES: Final = {"0": "dry", "1": "rain"}
FIRST_SHARE: Final = 0.1
LABEL_DELAY_ROWS: Final = 30
ENTITIES: Final = 16


def load(folder: Path) -> Scenario:
    """The scenario from the data sets in `folder`. An entity is every sixteenth day: one station alone would be one key, one partition."""
    rows = list(csv.DictReader(io.StringIO(read_text(folder / FILE))))
    try:
        columns = {name: [float(row[column]) for row in rows] for name, column in FEATURES.items()}
        labels = [CLASSES[row["target"]] for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / FILE}: not the weather data as expected: {error!r}") from None
    return Scenario(
        name="weather",
        columns=columns,
        labels=labels,
        entities=[f"day-{row % ENTITIES:02d}" for row in range(len(rows))],
        parts=["" for _ in rows],
        first=int(len(rows) * FIRST_SHARE),
        label_delay_rows=LABEL_DELAY_ROWS,
    )
