"""What is wrong with a request: the slow, precise reading of a record that the generated decoder refused."""

from __future__ import annotations

import json
import math
from typing import Any, Final, Literal

import msgspec

from schemas.errors import Rejection
from schemas.spec import BoolFeature, CategoryFeature, Feature, FloatFeature, IntFeature, ModelSpec

F32_MAX: Final = 3.4028234663852886e38
"""Largest finite float32: numbers are held as float32."""
I64_MAX: Final = (1 << 63) - 1
REQUEST_ID_CHARS: Final = 200
SHOWN_VALUES: Final = 20
"""Categories named in a rejection."""


def explain(
    spec: ModelSpec, value: bytes, parser_says: str, encoding: Literal["json", "msgpack"] = "json"
) -> Rejection:
    """Why `value` is no request for `spec`. `parser_says` is the fallback where this reading finds nothing."""
    try:
        record = _read_json(value) if encoding == "json" else _read_msgpack(value)
        found = _record_problem(spec, record, encoding)
    except Rejection as rejection:
        return rejection.bare()
    return found or Rejection("undecodable", "", f"{_OBJECT[encoding]} with each field once", parser_says)


_OBJECT: Final = {"json": "a JSON object", "msgpack": "a MessagePack map"}


def _read_json(value: bytes) -> object:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Rejection("undecodable", "", "UTF-8 text", f"{error.reason} at byte {error.start}") from None
    try:
        # Unlike msgspec this reads NaN, Infinity and 1e999, so that they can be named.
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Rejection("undecodable", "", _OBJECT["json"], str(error)) from None


def _read_msgpack(value: bytes) -> object:
    try:
        return msgspec.msgpack.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise Rejection("undecodable", "", _OBJECT["msgpack"], str(error)) from None


def _record_problem(spec: ModelSpec, record: object, encoding: str) -> Rejection | None:
    if not isinstance(record, dict):
        return Rejection("undecodable", "", _OBJECT[encoding], f"found {_kind(record)}")
    path = ""
    if "features" in record:
        found = _envelope_problem(spec, record)
        if found is not None:
            return found
        features, path = record["features"], "features."
    else:
        features = record
    if encoding == "msgpack":
        # Unlike JSON it can write a NaN, which is a missing number where one may be missing.
        features = {name: _present(spec, name, value) for name, value in features.items()}
    return problem(spec, features, path)


def _present(spec: ModelSpec, name: object, value: object) -> object:
    feature = spec.features.get(name) if isinstance(name, str) else None
    is_nan = isinstance(value, float) and math.isnan(value)
    return None if is_nan and isinstance(feature, FloatFeature) and feature.missing != "reject" else value


def problem(spec: ModelSpec, record: dict[Any, Any], path: str = "") -> Rejection | None:
    """What is wrong with a row of features (name → value), in the order of the spec; None if nothing is."""
    for name, feature in spec.features.items():
        found = _feature_problem(path + name, feature, record.get(name))
        if found is not None:
            return found
    for name in record:
        if name not in spec.features:
            return Rejection(
                "unknown_field",
                path + _shown(str(name)),
                f"one of {', '.join(spec.features)}",
                "unknown field",
            )
    return None


def _envelope_problem(spec: ModelSpec, record: dict[Any, Any]) -> Rejection | None:
    for name, value in record.items():
        if name == "features":
            if not isinstance(value, dict):
                return Rejection("bad_envelope", name, "an object of features", f"found {_kind(value)}")
        elif name == "request_id":
            if not isinstance(value, str) or len(value) > REQUEST_ID_CHARS:
                found = (
                    f"found {_kind(value)}"
                    if not isinstance(value, str)
                    else f"found {len(value)} characters"
                )
                return Rejection(
                    "bad_envelope", name, f"a text of at most {REQUEST_ID_CHARS} characters", found
                )
        elif name == "model":
            if value not in ("", spec.name):
                return Rejection("wrong_model", name, repr(spec.name), f"found {_shown(repr(value))}")
        else:
            return Rejection(
                "bad_envelope", _shown(str(name)), "features, request_id and model only", "unknown field"
            )
    return None


def _feature_problem(path: str, feature: Feature, value: object) -> Rejection | None:
    expected = expectation(feature)
    if value is None:
        return Rejection("missing_field", path, expected, "missing") if feature.missing == "reject" else None
    if not _is_typed(feature, value):
        return Rejection("wrong_type", path, expected, f"found {_kind(value)}")
    if isinstance(value, str):
        if (
            isinstance(feature, CategoryFeature)
            and feature.unknown == "reject"
            and value not in feature.values
        ):
            return Rejection("unknown_category", path, expected, f"found {_shown(repr(value))}")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            return Rejection("undecodable", path, "Unicode text", "half of a surrogate pair")
    elif isinstance(feature, FloatFeature | IntFeature) and isinstance(value, int | float):
        if not math.isfinite(value) if isinstance(value, float) else abs(value) > F32_MAX:
            return Rejection("not_finite", path, expected, "not a finite number")
        low, high = bounds_of(feature)
        if not low <= value <= high:
            return Rejection("out_of_range", path, expected, f"found {value!r}")
    return None


def _is_typed(feature: Feature, value: object) -> bool:
    """Whether JSON's type fits. A bool is no number, a text is no number, 3.0 is no whole number."""
    if isinstance(feature, BoolFeature):
        return isinstance(value, bool)
    if isinstance(feature, FloatFeature):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(feature, IntFeature):
        # NaN and infinities are typed like floats, and named as what they are.
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (isinstance(value, float) and not math.isfinite(value))
    return isinstance(value, str)


def bounds_of(feature: Feature) -> tuple[float, float]:
    """The smallest and the largest number that the feature admits."""
    if isinstance(feature, FloatFeature | IntFeature):
        limit = F32_MAX if isinstance(feature, FloatFeature) else I64_MAX
        return (
            -limit if feature.min is None else feature.min,
            limit if feature.max is None else feature.max,
        )
    return (0, 1)


def expectation(feature: Feature) -> str:
    """What the feature accepts, in words."""
    if isinstance(feature, BoolFeature):
        text = "true or false"
    elif isinstance(feature, FloatFeature | IntFeature):
        text = "a finite number" if isinstance(feature, FloatFeature) else "a whole number"
        if feature.min is not None:
            text += f" from {feature.min:g}" if isinstance(feature.min, float) else f" from {feature.min}"
        if feature.max is not None:
            text += f" to {feature.max:g}" if isinstance(feature.max, float) else f" to {feature.max}"
    elif isinstance(feature, CategoryFeature):
        some = ", ".join(map(repr, feature.values[:SHOWN_VALUES])) + (
            ", …" if feature.values[SHOWN_VALUES:] else ""
        )
        text = f"one of {some}" if feature.unknown == "reject" else "a text"
    else:
        text = "a text"
    return text if feature.missing == "reject" else f"{text}, or null"


def _kind(value: object) -> str:
    """JSON's name of a value's type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a bool"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "an array" if isinstance(value, list) else "an object"


def _shown(text: str) -> str:
    """A stranger's text, short enough and encodable, to be quoted in an answer."""
    return text.encode("utf-8", "replace").decode()[:100]
