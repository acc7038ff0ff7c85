"""Requests and predictions: what a producer writes to `requests.<model>` and reads from `predictions.<model>`.

A request is a bare JSON object of features, or an envelope `{"features": {…}, "request_id": …}`: an object with the key
`features` is an envelope (no feature may have that name).
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

CONTENT_TYPE: Final = "content-type"
TRACEPARENT: Final = "traceparent"

Reason: TypeAlias = Literal[
    "undecodable",              # not JSON, not an object, not UTF-8
    "unsupported_content_type",
    "oversized",
    "bad_timestamp",            # outside 48 bits: no prediction id can be made of it
    "bad_envelope",
    "bad_origin",               # a record in redrives.<model> that does not say where its original lay
    "wrong_model",
    "missing_field",
    "unknown_field",
    "wrong_type",
    "not_finite",
    "out_of_range",
    "unknown_category",
    "no_ready_version",
    "inference_failed",         # this row, alone, makes the model answer NaN or fail
]  # fmt: skip
"""Why a request was rejected."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The full form of a request."""

    features: msgspec.Raw
    request_id: str = ""
    """The producer's own id; feedback may name it. At most 200 characters."""
    model: str = ""
    """If given, must be the topic's model."""


class Rejected(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Why there is no answer."""

    reason: Reason
    field: str = ""
    """Path of the offending field, "" for the whole record."""
    expected: str = ""
    message: str = ""


class Prediction(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One answer (`rejected` is null) or one rejection, in `predictions.<model>` under the request's key and partition."""

    prediction_id: str
    model: str
    request_id: str = ""
    version: str = ""
    """`major.update` of the version that answered."""
    label: str = ""
    """The most probable class; "" for a regression."""
    score: float | None = None
    """Probability of `label`, or a regression's value."""
    scores: dict[str, float] = {}
    """Probability per class."""
    rejected: Rejected | None = None
    attempt: int = 0
    """0 for an ordinary request; n for its n-th redrive, which has the same prediction id."""
