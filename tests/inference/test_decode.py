"""The generated decoder and the slow, precise reading agree on every record; each mistake is named with field and expectation."""

import gc
import json
import math
import weakref
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.decode import Decoder
from inference.explain import explain
from schemas.errors import Rejection
from schemas.spec import decode_spec

SPEC = decode_spec(
    """
name = "toy"
task = "binary"
classes = ["no", "yes"]
module = "model:Toy"
[features]
x = { type = "float", min = 0, max = 1 }
class = { type = "float", missing = "mean" }
n = { type = "int", max = 10 }
flag = { type = "bool", missing = "mean" }
colour = { type = "category", values = ["red", "blue"] }
city = { type = "category", values = ["bern"], unknown = "other", missing = "other" }
text = { type = "text", missing = "empty" }
""",
    "toy",
)
DECODER = Decoder(SPEC)
GOOD: dict[str, Any] = {
    "x": 0.5,
    "class": 2,
    "n": 3,
    "flag": True,
    "colour": "red",
    "city": "bern",
    "text": "水",
}


def body(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


def enveloped(**changes: object) -> bytes:
    return json.dumps({"features": GOOD, **changes}).encode()


def test_good_records_become_columns_in_the_order_of_the_spec() -> None:
    values = [
        body(),
        body(x=1, flag=None, **{"class": None}, city="rome"),
        without("text"),
        enveloped(request_id="r-1"),
    ]
    decoded = DECODER.decode(values, {})
    assert decoded.rejections == {}
    assert decoded.accepted.tolist() == [0, 1, 2, 3]
    assert decoded.request_ids == {3: "r-1"}
    assert decoded.columns.numbers.dtype == np.float32
    np.testing.assert_array_equal(
        decoded.columns.numbers,
        [[0.5, 2, 3, 1], [1, math.nan, 3, math.nan], [0.5, 2, 3, 1], [0.5, 2, 3, 1]],
    )
    assert decoded.columns.texts.to_pylist() == [
        "red",
        "bern",
        "水",
        "red",
        "rome",
        "水",
        "red",
        "bern",
        "",
        "red",
        "bern",
        "水",
    ]


@pytest.mark.parametrize(
    ("value", "reason", "field", "expected"),
    [
        (b"", "undecodable", "", "a JSON object"),
        (b'{"x": 0.5', "undecodable", "", "a JSON object"),
        (b"[1, 2]", "undecodable", "", "a JSON object"),
        (b"7", "undecodable", "", "a JSON object"),
        (b"null", "undecodable", "", "a JSON object"),
        (body() + b"{}", "undecodable", "", "a JSON object"),
        (b"[" * 100_000, "undecodable", "", "a JSON object"),
        (b'{"x": "\xff"}', "undecodable", "", "UTF-8 text"),
        (body(text="\ud800"), "undecodable", "text", "Unicode text"),
        (without("x"), "missing_field", "x", "a finite number from 0 to 1"),
        (body(x=None), "missing_field", "x", "a finite number from 0 to 1"),
        (body(y=1), "unknown_field", "y", "one of x, class, n, flag, colour, city, text"),
        (body(x=True), "wrong_type", "x", "a finite number from 0 to 1"),
        (body(x="0.5"), "wrong_type", "x", "a finite number from 0 to 1"),
        (body(x=[0.5]), "wrong_type", "x", "a finite number from 0 to 1"),
        (body(n=3.0), "wrong_type", "n", "a whole number to 10"),
        (body(flag=1), "wrong_type", "flag", "true or false, or null"),
        (body(colour=1), "wrong_type", "colour", "one of 'red', 'blue'"),
        (body(text=1), "wrong_type", "text", "a text, or null"),
        (body(**{"class": math.nan}), "not_finite", "class", "a finite number, or null"),
        (body(**{"class": math.inf}), "not_finite", "class", "a finite number, or null"),
        (body(x=-math.inf), "not_finite", "x", "a finite number from 0 to 1"),
        (body().replace(b"0.5", b"1e999"), "not_finite", "x", "a finite number from 0 to 1"),
        (body(n=math.nan), "not_finite", "n", "a whole number to 10"),
        (body(n=10**400), "not_finite", "n", "a whole number to 10"),
        (body(x=1.0000001), "out_of_range", "x", "a finite number from 0 to 1"),
        (body(n=11), "out_of_range", "n", "a whole number to 10"),
        (body(**{"class": 1e39}), "out_of_range", "class", "a finite number, or null"),
        (body(colour="green"), "unknown_category", "colour", "one of 'red', 'blue'"),
        (enveloped(features=3), "bad_envelope", "features", "an object of features"),
        (enveloped(request_id=3), "bad_envelope", "request_id", "a text of at most 200 characters"),
        (enveloped(request_id="r" * 201), "bad_envelope", "request_id", "a text of at most 200 characters"),
        (enveloped(extra=1), "bad_envelope", "extra", "features, request_id and model only"),
        (enveloped(model="other"), "wrong_model", "model", "'toy'"),
        (enveloped(features=GOOD | {"x": 2}), "out_of_range", "features.x", "a finite number from 0 to 1"),
    ],
)  # fmt: skip
def test_a_bad_record_is_refused_by_name_and_the_good_ones_around_it_are_served(
    value: bytes, reason: str, field: str, expected: str
) -> None:
    decoded = DECODER.decode([body(), value, enveloped()], {})
    assert decoded.accepted.tolist() == [0, 2]
    assert decoded.columns.rows == 2
    (rejection,) = decoded.rejections.values()
    assert (rejection.reason, rejection.field, rejection.expected) == (reason, field, expected)
    rejection.message.encode()


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("value", [b'{"x": 0.5', b'{"x": "\xff"}', without("x"), body(x="0.5"), body(x=2)])
def test_what_a_refused_record_was_read_into_is_freed_with_its_rejection(value: bytes) -> None:
    # The gateway collects garbage now and then only, and a rejection lives until it is committed: one that held the frames that it
    # went through would hold every row that was decoded beside it, and be held by them.
    decoded = DECODER.decode([body(), value, enveloped()], {})
    rejection = decoded.rejections[1]
    assert (rejection.__traceback__, rejection.__context__, rejection.__cause__) == (None, None, None)
    lives = weakref.ref(rejection)
    del decoded, rejection
    assert lives() is None


def test_records_refused_before_are_not_decoded_again() -> None:
    refused = explain(SPEC, b"[]", "")
    decoded = DECODER.decode([body(), body(), None], {0: refused})
    assert decoded.accepted.tolist() == [1]
    assert decoded.rejections[0] is refused
    assert decoded.rejections[2].reason == "undecodable"


def test_wide_rows_are_decoded_in_pieces_and_come_out_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.decode.PIECE_NUMBERS", 3 * len(SPEC.numbers))
    values = [body(n=n, text=f"t{n}") for n in range(8)]
    values[4] = b"not JSON"
    values[5] = body(x=2)
    values[7] = enveloped(request_id="r-7")
    refused = Rejection("invalid_request", "", "", "refused before")
    decoded = Decoder(SPEC).decode(values, {3: refused})
    assert decoded.accepted.tolist() == [0, 1, 2, 6, 7]
    assert decoded.rejections.keys() == {3, 4, 5}
    assert decoded.rejections[3] is refused
    assert decoded.rejections[5].field == "x"
    assert decoded.request_ids == {7: "r-7"}
    assert decoded.columns.numbers[:, 2].tolist() == [0, 1, 2, 6, 3]
    assert decoded.columns.text(2).to_pylist() == ["t0", "t1", "t2", "t6", GOOD["text"]]


def test_a_value_that_says_features_is_still_a_bare_request() -> None:
    decoded = DECODER.decode([body(text="features")], {})
    assert decoded.rejections == {}
    assert decoded.columns.texts.to_pylist()[2] == "features"


ANY = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.sampled_from(["red", "bern"]),
    st.floats(0, 1), st.integers(0, 10), st.lists(st.integers(), max_size=1),
)  # fmt: skip


# Hypothesis builds its table of Unicode on first use, which counts as a slow draw.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.dictionaries(st.sampled_from([*GOOD, "y", "features"]), ANY, max_size=3),
    dropped=st.sets(st.sampled_from(sorted(GOOD)), max_size=2),
    envelope=st.dictionaries(st.sampled_from(["request_id", "model", "z"]), ANY | st.just("toy"), max_size=2)
    | st.none(),
)
def test_both_readings_agree_on_what_is_good(
    changes: dict[str, Any], dropped: set[str], envelope: dict[str, Any] | None
) -> None:
    record = {key: value for key, value in {**GOOD, **changes}.items() if key not in dropped}
    value = json.dumps(record if envelope is None else {"features": record, **envelope}).encode()
    slow = explain(SPEC, value, "nothing found")
    decoded = DECODER.decode([value], {})
    if decoded.rejections:
        assert "nothing found" not in slow.message
        assert decoded.rejections[0].message == slow.message
    else:
        assert "nothing found" in slow.message
        assert np.isfinite(decoded.columns.numbers[~np.isnan(decoded.columns.numbers)]).all()


def test_a_nan_in_messagepack_is_missing_where_a_number_may_be_missing() -> None:
    def packed(**changes: object) -> bytes:
        return msgspec.msgpack.encode({**GOOD, **changes})

    values = [packed(**{"class": math.nan}), packed(x=math.nan), packed(**{"class": math.nan}, n=11)]
    decoded = DECODER.decode(values, {}, "msgpack")
    assert decoded.accepted.tolist() == [0]
    assert math.isnan(decoded.columns.numbers[0, 1])
    assert {index: (r.reason, r.field) for index, r in decoded.rejections.items()} == {
        1: ("not_finite", "x"), 2: ("out_of_range", "n"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "reason"),
    [(b"", "undecodable"), (b"\xc1", "undecodable"), (b"\x93\x01\x02\x03", "undecodable"), (b'{"x": 1}', "undecodable"),
     (msgspec.msgpack.encode({**GOOD, "y": 1}), "unknown_field"), (msgspec.msgpack.encode({**GOOD, 7: 1}), "unknown_field"),
     (msgspec.msgpack.encode({**GOOD, "x": b"1"}), "wrong_type")],
)  # fmt: skip
def test_bad_messagepack_is_refused_alone(value: bytes, reason: str) -> None:
    good = msgspec.msgpack.encode({"features": GOOD, "request_id": "r-1"})
    decoded = DECODER.decode([good, value, good], {}, "msgpack")
    assert decoded.accepted.tolist() == [0, 2]
    assert decoded.rejections[1].reason == reason
    assert decoded.request_ids == {0: "r-1", 2: "r-1"}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.dictionaries(st.sampled_from([*GOOD, "y"]), ANY.filter(lambda v: v == v), max_size=3),
    dropped=st.sets(st.sampled_from(sorted(GOOD)), max_size=2),
)
def test_messagepack_and_json_are_judged_alike(changes: dict[str, Any], dropped: set[str]) -> None:
    record = {key: value for key, value in {**GOOD, **changes}.items() if key not in dropped}
    as_json = DECODER.decode([json.dumps(record).encode()], {})
    try:
        packed = msgspec.msgpack.encode(record)
    except OverflowError:
        return  # an integer of more than 64 bits, which MessagePack cannot write
    as_msgpack = DECODER.decode([packed], {}, "msgpack")
    assert {i: r.message for i, r in as_json.rejections.items()} == {
        i: r.message for i, r in as_msgpack.rejections.items()
    }
    np.testing.assert_array_equal(as_json.columns.numbers, as_msgpack.columns.numbers)
    assert as_json.columns.texts == as_msgpack.columns.texts
