"""What lies in a topic of batches is a batch with the columns that are asked for, or it is refused in one line."""

from __future__ import annotations

import pyarrow as pa
import pytest

from schemas.arrow import OBSERVATIONS, decode_batch, encode_batch, part_of
from schemas.errors import Rejection

BATCH = pa.record_batch({"model": ["fraud"], "role": ["live"]})


def test_a_batch_comes_back_as_it_was() -> None:
    assert decode_batch(encode_batch(BATCH), part_of(OBSERVATIONS, ["role"])).equals(BATCH)


@pytest.mark.parametrize(
    "value", [b"", b"{}", b"no arrow at all", encode_batch(BATCH)[:40], encode_batch(BATCH)[:-60]]
)
def test_what_is_no_batch_is_refused(value: bytes) -> None:
    with pytest.raises(Rejection, match="an Arrow IPC stream"):
        decode_batch(value)


def test_a_batch_that_lacks_a_column_is_refused_by_its_name() -> None:
    with pytest.raises(Rejection, match="it lacks label, score"):
        decode_batch(encode_batch(BATCH), part_of(OBSERVATIONS, ["model", "score", "label"]))


def test_a_batch_with_a_column_of_another_type_is_refused_by_its_name() -> None:
    with pytest.raises(Rejection, match=r"score.*expected float, found string"):
        decode_batch(encode_batch(pa.record_batch({"score": ["high"]})), part_of(OBSERVATIONS, ["score"]))
