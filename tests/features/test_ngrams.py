from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from features.ngrams import hashed_ngrams
from schemas.spec import TextFeature

MANY = 2**31 - 1
"""So many buckets that a test sees no collision."""


def bags(texts: list[str], **feature: object) -> list[list[int]]:
    found = hashed_ngrams(pa.array(texts, pa.string()), TextFeature(**feature))  # type: ignore[arg-type]
    ends = [*found.offsets.tolist(), len(found.ids)]
    return [found.ids[begin:end].tolist() for begin, end in pairwise(ends)]


def reference(text: str, shortest: int, longest: int, buckets: int) -> list[int]:
    """The same hash, one character after the other, in Python's integers."""
    wrap = (1 << 64) - 1
    ids = []
    for n in range(shortest, longest + 1):
        for begin in range(len(text) - n + 1):
            value = 0
            for character in text[begin : begin + n]:
                value = (value * 0x9E3779B97F4A7C15 + ord(character) + 1) & wrap
            value = (value + n) & wrap
            value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & wrap
            value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & wrap
            value ^= value >> 31
            ids.append((value >> 32) * buckets >> 32)
    return ids


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=6),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, MANY),
    st.integers(1, 14),
)
def test_ids_equal_a_plain_loop_over_characters(
    texts: list[str], shortest: int, more: int, buckets: int, max_chars: int
) -> None:
    longest = shortest + more
    found = bags(texts, ngrams=(shortest, longest), buckets=buckets, max_chars=max_chars)
    assert found == [reference(text[:max_chars], shortest, longest, buckets) for text in texts]


def test_ids_never_change_because_stored_weights_belong_to_them() -> None:
    assert bags(["水车 ok"], ngrams=(1, 2), buckets=1 << 17) == [
        [121643, 107034, 101618, 116146, 24926, 82293, 65313, 31394, 71695]
    ]


def test_no_ngram_crosses_from_one_text_to_the_next() -> None:
    assert bags(["ab", "cd"], ngrams=(2, 3), buckets=MANY) == [
        *bags(["ab"], ngrams=(2, 3), buckets=MANY),
        *bags(["cd"], ngrams=(2, 3), buckets=MANY),
    ]


def test_texts_without_characters_have_no_ngrams_wherever_they_stand() -> None:
    empty, full = bags(["", "好", "", ""], ngrams=(1, 3)), bags(["好"], ngrams=(1, 3))
    assert empty == [[], *full, [], []]
    assert [len(bag) for bag in full] == [1]


def test_texts_shorter_than_the_ngram_have_none() -> None:
    assert bags(["ab", "abc"], ngrams=(3, 3)) == [[], *bags(["abc"], ngrams=(3, 3))]


def test_characters_beyond_max_chars_are_not_encoded() -> None:
    assert bags(["水水水abc"], max_chars=3) == bags(["水水水"])


def test_characters_of_four_bytes_are_one_character() -> None:
    assert len(bags(["🙂🙃"], ngrams=(1, 1))[0]) == 2


def test_a_zero_character_counts() -> None:
    assert bags(["\0a"], ngrams=(1, 2), buckets=MANY) != bags(["aa"], ngrams=(1, 2), buckets=MANY)
    assert len(set(bags(["a", "\0a"], ngrams=(1, 2), buckets=MANY)[1])) == 3


def test_ids_spread_evenly_over_buckets_that_are_no_power_of_two() -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000)))
    counts = [0] * 10
    for bucket in bags([text], ngrams=(1, 1), buckets=10, max_chars=20_000)[0]:
        counts[bucket] += 1
    # 2,000 expected in each; 5 standard deviations are 212.
    assert max(abs(count - 2000) for count in counts) < 212
