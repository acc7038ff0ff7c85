from pathlib import Path

import pyarrow.parquet
import pytest

from compose.embedded import parts
from scenarios import reviews
from scenarios.scenario import sha256
from schemas.errors import UserError


def write(folder: Path, repeat: bool = True) -> None:
    for name, word in (("pos.txt", "good"), ("neg.txt", "bad")):
        hotels, electronics = (start for _, start in reviews.DOMAIN_STARTS[name])
        lines = [f"{word} book {n}" for n in range(4)]
        lines += [f"{hotels} {word}"] + [f"{word} hotel {n}" for n in range(3)]
        lines += [f"{electronics} {word}"] + [f"{word} laptop {n}" for n in range(3)]
        if repeat:
            lines.insert(2, lines[1])
            lines.insert(5, "  in both files ")
        (folder / name).write_text("\n".join(lines) + "\n\n", encoding="utf-8")


def test_labels_stay_in_proportion_but_not_in_turns_and_domains_follow_each_other(tmp_path: Path) -> None:
    write(tmp_path)
    scenario = reviews.load(tmp_path)
    pairs = list(zip(scenario.labels[::2], scenario.labels[1::2], strict=True))
    assert set(pairs) == {("negative", "positive"), ("positive", "negative")}
    assert reviews.load(tmp_path) == scenario
    assert scenario.parts == ["books"] * 8 + ["hotels"] * 8 + ["electronics"] * 8
    assert scenario.features(1) == {"text": "good book 0"}
    assert (scenario.first, scenario.label_delay_rows) == (4, 200)


def test_repeated_lines_count_once_and_lines_with_both_labels_not_at_all(tmp_path: Path) -> None:
    write(tmp_path)
    with_repeats = reviews.load(tmp_path)
    write(tmp_path, repeat=False)
    assert reviews.load(tmp_path) == with_repeats


def test_a_text_always_has_the_same_entity(tmp_path: Path) -> None:
    write(tmp_path)
    assert reviews.load(tmp_path).entities[1] == "reviewer-21"


def test_the_training_file_keeps_texts_as_they_are(tmp_path: Path) -> None:
    write(tmp_path)
    scenario = reviews.load(tmp_path)
    assert scenario.write_training_file(tmp_path / "books.parquet") == 4
    assert pyarrow.parquet.read_table(tmp_path / "books.parquet").to_pylist() == [
        {"text": text, "label": label}
        for text, label in zip(scenario.columns["text"][:4], scenario.labels[:4], strict=True)
    ]
    with pytest.raises(UserError, match=r"books\.txt: expected a name that ends in \.parquet or \.csv"):
        scenario.write_training_file(tmp_path / "books.txt")


def test_a_file_without_the_known_domains_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "neg.txt").write_text("only books\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"neg\.txt: no line begins with"):
        reviews.load(tmp_path)


def test_the_real_data_are_what_the_figures_were_measured_on() -> None:
    folder = parts.path("datasets")
    assert {name: sha256(folder / name) for name in reviews.FILES} == reviews.SHA256
    scenario = reviews.load(folder)
    # 17,410 unique lines, 47 of them in both files.
    assert len(scenario) == 17_363
    assert set(scenario.parts[: scenario.first]) == {"books"}
    assert [scenario.parts.count(name) for name in ("books", "hotels", "electronics")] == [3748, 7875, 5740]
