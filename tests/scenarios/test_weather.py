from pathlib import Path

import pytest

from compose.embedded import parts
from scenarios import weather
from scenarios.scenario import sha256
from schemas.errors import UserError


def test_the_real_data_have_the_features_and_classes_of_the_walk_through() -> None:
    folder = parts.path("datasets")
    assert sha256(folder / weather.FILE) == weather.SHA256
    scenario = weather.load(folder)
    assert (len(scenario), scenario.first, len(set(scenario.entities))) == (18_159, 1_815, weather.ENTITIES)
    assert scenario.labels.count("rain") == 5_698
    assert scenario.features(0) == {
        "temperature": 19.8, "dew_point": 14.0, "pressure": 1019.6, "visibility": 8.4,
        "wind": 9.9, "gust": 15.9, "warmest": 28.9, "coldest": 14.0,
    }  # fmt: skip
    assert scenario.labels[:3] == ["dry", "dry", "rain"]


def test_another_file_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / weather.FILE).write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"weather\.csv: not the weather data"):
        weather.load(tmp_path)
