"""Training files are checked as the gateway checks requests: one finding for each kind of fault, and good rows stay good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import UserError
from schemas.spec import ModelSpec
from tests.training.toys import SPEC, write_model
from training.files import load_file


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return write_model(tmp_path / "models")


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_keeps_quotes_commas_newlines_and_order(tmp_path: Path, spec: ModelSpec) -> None:
    path = written(
        tmp_path / "a.csv", 'label,text,x,y\nyes,"a ""quoted"", text\nin two lines",1.5,2\nno,好,-1e1,\n'
    )
    loaded = load_file(path, spec)
    assert loaded.findings == []
    assert loaded.rows.columns.texts.to_pylist() == ['a "quoted", text\nin two lines', "好"]
    np.testing.assert_array_equal(
        loaded.rows.columns.numbers, np.array([[1.5, 2], [-10, np.nan]], np.float32)
    )
    assert loaded.rows.targets.tolist() == [1, 0]


def test_faults_are_counted_by_column_and_kind_with_their_first_rows(tmp_path: Path, spec: ModelSpec) -> None:
    lines = [
        "x,y,text,label",
        "1,2,a,yes",
        "eleven,2,a,yes",
        "11,2,a,no",
        "nan,2,a,no",
        ",2,a,no",
        "1,inf,a,no",
        "1,2,,no",
        "1,2,a,maybe",
        "1,2,a,",
    ]
    loaded = load_file(written(tmp_path / "a.csv", "\n".join(lines) + "\n"), spec)
    assert [(f.column, f.reason, f.count, f.first_rows) for f in loaded.findings] == [
        ("x", "missing_field", 1, [5]),
        ("x", "not_finite", 1, [4]),
        ("x", "out_of_range", 1, [3]),
        ("x", "wrong_type", 1, [2]),
        ("y", "not_finite", 1, [6]),
        ("text", "missing_field", 1, [7]),
        ("label", "missing_field", 1, [9]),
        ("label", "unknown_category", 1, [8]),
    ]
    assert str(loaded.findings[2]) == "x: out_of_range in 1 rows (3); expected -10.0 to 10.0"
    assert (len(loaded.rows), loaded.read) == (1, 9)


def test_many_faults_of_one_kind_are_one_finding(tmp_path: Path, spec: ModelSpec) -> None:
    loaded = load_file(written(tmp_path / "a.csv", "x,y,text,label\n" + "99,2,a,yes\n" * 20), spec)
    assert len(loaded.findings) == 1
    assert (loaded.findings[0].count, loaded.findings[0].first_rows) == (20, [1, 2, 3, 4, 5])
    assert len(loaded.rows) == 0


def test_json_lines_and_parquet_give_the_rows_that_a_csv_gives(tmp_path: Path, spec: ModelSpec) -> None:
    values = {"x": [1.0, -2.5], "y": [None, 3.0], "text": ["a", "b"], "label": ["yes", "no"]}
    pq.write_table(pa.table(values), tmp_path / "a.parquet")
    written(
        tmp_path / "a.jsonl",
        '{"x": 1, "text": "a", "label": "yes"}\n\n{"x": -2.5, "y": 3.0, "text": "b", "label": "no"}\n',
    )
    written(tmp_path / "a.csv", "x,y,text,label\n1,,a,yes\n-2.5,3,b,no\n")
    first, *others = [load_file(tmp_path / f"a.{suffix}", spec) for suffix in ("csv", "jsonl", "parquet")]
    for other in others:
        assert other.findings == first.findings == []
        np.testing.assert_array_equal(other.rows.columns.numbers, first.rows.columns.numbers)
        assert other.rows.columns.texts.equals(first.rows.columns.texts)
        assert other.rows.targets.tolist() == first.rows.targets.tolist()


def test_json_types_are_not_guessed(tmp_path: Path, spec: ModelSpec) -> None:
    path = written(tmp_path / "a.jsonl", '{"x": true, "y": [1], "text": 5, "label": "yes"}\n')
    assert [(f.column, f.reason) for f in load_file(path, spec).findings] == [
        ("x", "wrong_type"), ("y", "wrong_type"), ("text", "wrong_type"),
    ]  # fmt: skip


def test_categories_bools_and_whole_numbers_are_checked(tmp_path: Path) -> None:
    features = 'kind = { type = "category", values = ["a", "b"] }\nbig = { type = "bool" }\ncount = { type = "int", min = 0 }\n[monitor]'
    text = SPEC.replace('[monitor]\nsegments = ["x:2"]', features)
    spec = write_model(tmp_path / "models", text)
    path = written(
        tmp_path / "a.csv",
        "x,y,text,kind,big,count,label\n1,1,t,a,true,3,yes\n1,1,t,c,true,3,yes\n1,1,t,a,2,3,yes\n1,1,t,a,0,2.5,yes\n1,1,t,b,1,-1,yes\n",
    )
    loaded = load_file(path, spec)
    assert [(f.column, f.reason, f.first_rows) for f in loaded.findings] == [
        ("kind", "unknown_category", [2]), ("big", "wrong_type", [3]), ("count", "out_of_range", [5]), ("count", "wrong_type", [4]),
    ]  # fmt: skip
    assert loaded.rows.columns.numbers.tolist() == [[1, 1, 1, 3]]


def test_another_label_column_and_extra_columns(tmp_path: Path, spec: ModelSpec) -> None:
    path = written(tmp_path / "a.csv", "x,y,text,id,truth\n1,2,a,77,yes\n")
    loaded = load_file(path, spec, "truth")
    assert loaded.ignored == ["id"]
    assert len(loaded.rows) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x,y,label\n1,2,yes\n", "no column text; expected x, y, text, label; found x, y, label"),
        ("a.csv", "", "cannot be read as csv"),
        ("a.csv", "x,x,y,text,label\n1,1,2,a,yes\n", "the header names x more than once"),
        ("a.csv", "x,y,text,label\n1,2\n", "cannot be read as csv"),
        ("a.jsonl", '{"x": 1}\nnonsense\n', "line 2: expected one JSON object"),
        ("a.jsonl", "[1]\n", "line 1: expected one JSON object"),
        ("a.parquet", "PAR", "cannot be read as parquet"),
        ("a.xlsx", "", "expected a name that ends in .csv"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, spec: ModelSpec, name: str, content: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_file(written(tmp_path / name, content), spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path, spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=r"nowhere\.csv: no such file"):
        load_file(tmp_path / "nowhere.csv", spec)
