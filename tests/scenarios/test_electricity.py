from pathlib import Path

import pyarrow.csv
import pytest

from compose.embedded import parts
from scenarios import electricity
from scenarios.scenario import sha256
from schemas.errors import UserError

HEADER = "feat_1,feat_2,feat_3,feat_4,feat_5,feat_6,target\n"


def write(folder: Path, rows: int) -> None:
    lines = [f"{slot % 48 / 47:.6f},0.{slot},0.2,0.3,0.4,0.5,{slot % 2}\n" for slot in range(rows)]
    (folder / "elec.csv").write_text(HEADER + "".join(lines))


def test_features_have_the_models_names_and_labels_its_classes(tmp_path: Path) -> None:
    write(tmp_path, 60)
    scenario = electricity.load(tmp_path)
    assert (len(scenario), scenario.first, scenario.label_delay_rows) == (60, 6, 48)
    assert scenario.features(3) == {
        "period": 0.06383, "nswprice": 0.3, "nswdemand": 0.2, "vicprice": 0.3, "vicdemand": 0.4, "transfer": 0.5,
    }  # fmt: skip
    assert scenario.labels[:3] == ["down", "up", "down"]


def test_an_entity_is_the_half_hour_modulo_16(tmp_path: Path) -> None:
    write(tmp_path, 60)
    scenario = electricity.load(tmp_path)
    assert [scenario.entities[row] for row in (0, 1, 16, 47, 48)] == [
        "slot-00", "slot-01", "slot-00", "slot-15", "slot-00",
    ]  # fmt: skip


def test_the_training_file_holds_the_first_rows_with_their_labels(tmp_path: Path) -> None:
    write(tmp_path, 60)
    scenario = electricity.load(tmp_path)
    assert scenario.write_training_file(tmp_path / "first.csv") == 6
    table = pyarrow.csv.read_csv(tmp_path / "first.csv")
    assert table.column_names == [*electricity.FEATURES, "label"]
    assert table["label"].to_pylist() == ["down", "up"] * 3
    assert table["nswprice"].to_pylist() == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_missing_or_other_file_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"elec\.csv: not there"):
        electricity.load(tmp_path)
    (tmp_path / "elec.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"elec\.csv: not Elec2"):
        electricity.load(tmp_path)


def test_the_real_data_are_what_the_figures_were_measured_on() -> None:
    folder = parts.path("datasets")
    assert sha256(folder / electricity.FILE) == electricity.SHA256
    scenario = electricity.load(folder)
    assert (len(scenario), scenario.first, len(scenario) - scenario.first) == (45_312, 4_531, 40_781)
    assert scenario.labels.count("up") == 19_237
    assert len(set(scenario.entities)) == electricity.ENTITIES
