"""Arrow requests: many rows in one record; the same judgement of each row as of the JSON that says the same."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.columns import Columns
from inference.decode_arrow import ArrowDecoder
from inference.numbers import Ranges
from schemas.arrow_size import unpacked_bytes
from schemas.errors import Rejection
from schemas.formats import ARROW_BYTES, ARROW_UNPACKED_BYTES, arrow_rows_limit, read_arrow, request_rows
from schemas.spec import decode_spec
from tests.inference.test_decode import DECODER, GOOD, SPEC

ARROW = ArrowDecoder(SPEC, Ranges.of(SPEC))


def stream(batch: pa.RecordBatch, *more: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        for one in (batch, *more):
            writer.write_batch(one)
    return bytes(sink.getvalue())


def packed(batch: pa.RecordBatch, codec: str | None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=codec)
    ) as writer:  # fmt: skip
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def batch(rows: int = 3, **columns: Any) -> pa.RecordBatch:
    """`rows` good rows, with columns replaced (None: left out)."""
    found = {name: [value] * rows for name, value in GOOD.items()} | columns
    return pa.record_batch({name: column for name, column in found.items() if column is not None})


def decoded(given: pa.RecordBatch) -> tuple[Columns, list[int], dict[int, tuple[str, str]], dict[int, str]]:
    columns, accepted, rejections, ids = ARROW.decode(read_arrow(stream(given), arrow_rows_limit(SPEC)))
    return columns, accepted.tolist(), {row: (r.reason, r.field) for row, r in rejections.items()}, ids


def test_columns_of_any_width_become_the_columns_of_the_spec() -> None:
    columns, accepted, rejections, ids = decoded(
        batch(
            x=pa.array([0, 1, 0], pa.int8()),
            **{"class": pa.array([1.5, None, math.nan], pa.float64())},
            n=pa.array([1.0, 2.0, -3.0], pa.float32()),
            flag=pa.array([True, None, False]),
            colour=pa.array(["red", "blue", "red"]).dictionary_encode(),
            city=pa.array(["bern", None, "rome"], pa.large_string()),
            text=pa.nulls(3),
            request_id=["a", None, "c"],
        )
    )
    assert rejections == {}
    assert accepted == [0, 1, 2]
    np.testing.assert_array_equal(
        columns.numbers, [[0, 1.5, 1, 1], [1, math.nan, 2, math.nan], [0, math.nan, -3, 0]]
    )
    assert columns.texts.to_pylist() == ["red", "bern", "", "blue", "", "", "red", "rome", ""]
    assert ids == {0: "a", 2: "c"}


@pytest.mark.parametrize(
    ("name", "column", "reason"),
    [
        ("x", pa.array([0.5, math.nan, 0.5]), "not_finite"),
        ("x", pa.array([0.5, None, 0.5]), "missing_field"),
        ("x", pa.array([0.5, math.inf, 0.5]), "not_finite"),
        ("x", pa.array([0, 2, 1], pa.uint64()), "out_of_range"),
        ("class", pa.array([1, 1e39, 1], pa.float64()), "out_of_range"),
        ("n", pa.array([1, 1.5, 1], pa.float64()), "wrong_type"),
        ("n", pa.array([1, 11, 1], pa.int16()), "out_of_range"),
        ("colour", pa.array(["red", "green", "red"]), "unknown_category"),
        ("colour", pa.array(["red", None, "red"]), "missing_field"),
        ("request_id", pa.array(["a", "b" * 201, "c"]), "bad_envelope"),
    ],
)
def test_a_bad_value_refuses_its_row_alone(name: str, column: pa.Array, reason: str) -> None:
    columns, accepted, rejections, _ = decoded(batch(**{name: column}))
    assert accepted == [0, 2]
    assert rejections == {1: (reason, name)}
    assert columns.rows == 2
    assert len(columns.texts) == 2 * len(SPEC.texts)


@pytest.mark.parametrize(
    ("name", "column", "reason"),
    [
        ("y", [1, 2, 3], "unknown_field"),
        ("x", ["1", "2", "3"], "wrong_type"),
        ("flag", [1, 0, 1], "wrong_type"),
        ("text", pa.array([b"a", b"b", b"c"]), "wrong_type"),
        ("request_id", [1, 2, 3], "bad_envelope"),
        ("x", None, "missing_field"),
    ],
)
def test_a_wrong_column_refuses_every_row(name: str, column: Any, reason: str) -> None:
    columns, accepted, rejections, _ = decoded(batch(**{name: column}))
    assert accepted == []
    assert columns.rows == 0
    assert rejections == dict.fromkeys(range(3), (reason, name))


def test_each_row_is_judged_as_its_json_would_be() -> None:
    values: dict[str, list[Any]] = {
        "x": [0.5, -0.1, None, 1.0], "class": [None, 1.0, 2.0, 3.0], "n": [1, 2, 3, 11], "flag": [True, None, False, True],
        "colour": ["red", "blue", "red", "pink"], "city": ["bern", "rome", None, "bern"], "text": ["a", None, "c", "d"],
    }  # fmt: skip
    columns, accepted, rejections, _ = decoded(pa.record_batch(values))
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    expected = DECODER.decode([json.dumps(row).encode() for row in rows], {})
    assert accepted == expected.accepted.tolist()
    assert rejections == {i: (r.reason, r.field) for i, r in expected.rejections.items()}
    np.testing.assert_array_equal(columns.numbers, expected.columns.numbers)
    assert columns.texts == expected.columns.texts


def test_texts_that_are_no_utf8_refuse_the_record() -> None:
    text = pa.array([b"ok", b"\xff\xfe", b"ok"]).view(pa.string())
    _, accepted, rejections, _ = decoded(batch(text=text))
    assert accepted == []
    assert set(rejections.values()) == {("undecodable", "")}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "undecodable"), (b"no arrow", "undecodable"), (stream(batch())[:200], "undecodable"), (stream(batch(0)), "undecodable"),
        (b"\x00" * (ARROW_BYTES + 1), "oversized"), (stream(batch(arrow_rows_limit(SPEC) + 1)), "oversized"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_read_is_one_row(value: bytes, reason: str) -> None:
    with pytest.raises(Rejection) as caught:
        read_arrow(value, arrow_rows_limit(SPEC))
    assert caught.value.reason == reason
    assert request_rows(value, "application/vnd.apache.arrow.stream", arrow_rows_limit(SPEC)) == 1


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_small_record_that_unpacks_to_a_large_one_is_refused_unopened(
    codec: str, kind: pa.DataType
) -> None:
    text = pa.array(["a" * (ARROW_UNPACKED_BYTES + 1)]).cast(kind)
    value = packed(pa.record_batch({"text": text}), codec)
    assert len(value) < ARROW_BYTES
    with pytest.raises(Rejection, match="unpacked") as caught:
        read_arrow(value, 10)
    assert caught.value.reason == "oversized"
    assert read_arrow(packed(batch(3), codec), 10).equals(batch(3))


@pytest.mark.parametrize("codec", [None, "zstd", "lz4"])
def test_the_unpacked_size_is_what_the_reader_allocates(codec: str | None) -> None:
    wide = pa.record_batch({f"x{i}": np.random.default_rng(i).random(500) for i in range(20)})
    assert 0 <= unpacked_bytes(packed(wide, codec)) - wide.nbytes < 20 * 64


def test_a_schema_that_was_read_before_is_taken_for_no_other() -> None:
    first, other = batch(2), batch(3, x=pa.array([1.0, 0.5, 0.0]))
    coloured = batch(2, colour=pa.array(["red", "blue"]).dictionary_encode())
    nested = pa.record_batch({"x": pa.array([["a"], []], pa.list_(pa.dictionary(pa.int8(), pa.string())))})
    for _ in range(2):
        for given_batch in (first, other, coloured, nested):
            assert read_arrow(stream(given_batch), 10).equals(given_batch)
    assert read_arrow(stream(first, first), 10).equals(pa.concat_batches([first, first]))


@given(st.data())
def test_a_stream_of_a_stranger_is_read_as_arrows_own_reader_does(data: st.DataObject) -> None:
    value = bytearray(stream(batch(3), batch(2)))
    for _ in range(data.draw(st.integers(0, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(value)))
    try:
        with pa.ipc.open_stream(bytes(value[:end])) as reader:
            expected = pa.Table.from_batches(list(reader), reader.schema)
    except (pa.ArrowException, OSError, ValueError):
        expected = None
    if expected is not None and not 0 < expected.num_rows <= 10:
        expected = None
    try:
        found = read_arrow(bytes(value[:end]), 10)
    except Rejection:
        found = None
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found.num_rows == expected.num_rows
        assert found.schema.equals(expected.schema)


@given(st.data())
def test_metadata_of_a_stranger_is_a_size_or_no_arrow(data: st.DataObject) -> None:
    value = bytearray(packed(batch(3, text=pa.array(["a", "b", "a"]).dictionary_encode()), "zstd"))
    for _ in range(3):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert unpacked_bytes(bytes(value)) >= 0
    except ValueError as error:
        assert str(error)


def test_a_dictionary_is_bounded_by_what_its_rows_say() -> None:
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(200, np.int32)), pa.array(["a" * 100_000]))
    _, accepted, rejections, _ = decoded(batch(200, text=long))
    assert accepted == []
    assert set(rejections.values()) == {("oversized", "text")}


def test_the_batches_of_a_stream_are_rows_of_one_record() -> None:
    value = stream(batch(2), batch(3))
    assert read_arrow(value, 10).num_rows == 5
    assert request_rows(value, "application/vnd.apache.arrow.stream", 10) == 5
    assert request_rows(value, "application/json", 10) == 1


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_columns_that_are_all_floats_are_read_at_once(kind: pa.DataType) -> None:
    spec = decode_spec(
        'name = "toy"\ntask = "regression"\nmodule = "m:T"\n[features]\nb = { type = "float", missing = "mean" }\n'
        'a = { type = "float", max = 5 }\n[rollout]\nmetric = "squared_error"',
        "toy",
    )
    columns, accepted, rejections, _ = ArrowDecoder(spec, Ranges.of(spec)).decode(
        pa.record_batch(
            {"a": pa.array([1, 2, 9, None, math.nan], kind), "b": pa.array([None, 7, 8, 9, 9], kind)}
        )
    )
    assert accepted.tolist() == [0, 1]
    np.testing.assert_array_equal(columns.numbers, np.array([[math.nan, 1], [7, 2]], np.float32))
    assert {row: r.reason for row, r in rejections.items()} == {
        2: "out_of_range",
        3: "missing_field",
        4: "not_finite",
    }


def test_a_row_of_more_text_than_a_request_may_have_is_refused_alone() -> None:
    """It would make an observation that no topic takes."""
    long = "x" * (SPEC.serve.max_request_bytes + 1)
    _, accepted, rejections, _ = decoded(batch(text=pa.array(["a", long, "b"])))
    assert accepted == [0, 2]
    assert rejections == {1: ("oversized", "")}
