"""What lies in a topic of batches is a batch with the columns that are asked for, or it is refused in one line."""

from __future__ import annotations

import pyarrow as pa
import pytest

from schemas.arrow import OBSERVATIONS, decode_batch, encode_batch, only_text, part_of, rows_with, texts_in
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


@pytest.mark.parametrize(
    ("texts", "only"),
    [
        (["live"] * 3, "live"), (["", ""], ""), (["a"], "a"), ([""], ""), (["größe"] * 2, "größe"),
        ([], None), (["live", "dead"], None), (["ab", "a", "abc"], None), (["", "ab", ""], None), (["live", None], None),
    ],
)  # fmt: skip
def test_a_column_has_one_text_or_not_wherever_it_is_cut_from(
    texts: list[str | None], only: str | None
) -> None:
    column = pa.array(texts, pa.string())
    assert only_text(column) == only
    among = pa.array(["x", *texts, "yyy"], pa.string()).slice(1, len(texts))
    assert only_text(among) == only
    assert texts_in(column) == list(dict.fromkeys(texts))


def test_rows_are_chosen_by_their_texts() -> None:
    batch = pa.record_batch({"role": ["live"] * 3, "arm": ["a", "b", "a"], "row": [0, 1, 2]})
    chosen = {
        ("live", "a"): [0, 2], ("live", "b"): [1], ("live", "c"): [], ("shadow", "a"): [],
    }  # fmt: skip
    for (role, arm), rows in chosen.items():
        assert rows_with(batch, role=role, arm=arm)["row"].to_pylist() == rows
    assert rows_with(batch, role="live") is batch
