"""Hashed character n-grams of a whole batch at once, in the form of torch.nn.EmbeddingBag.

The hashing trick (Weinberger et al., 2009, https://arxiv.org/abs/0902.2206): no vocabulary is kept, so a new word needs no new
version. All arithmetic is on unsigned 64-bit integers that wrap, so a text has the same ids on every platform and in every batch.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.spec import TextFeature

_BASE: Final = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that multiplying loses nothing."""


class Bags(NamedTuple):
    """The n-grams of a column of texts."""

    ids: NDArray[np.int32]
    """[n]: bucket of each n-gram, row after row; within a row the shortest n-grams first, each length in reading order."""
    offsets: NDArray[np.int32]
    """[rows]: where each row's n-grams begin; a row without any begins where the next one does."""


def hashed_ngrams(texts: pa.StringArray, feature: TextFeature) -> Bags:
    """The n-grams of `texts` [rows], cut to `feature.max_chars` characters each; a character is a Unicode code point."""
    cut = pc.utf8_slice_codeunits(texts, 0, feature.max_chars)
    lengths = pc.utf8_length(cut).to_numpy(zero_copy_only=False).astype(np.int64)
    codes = _code_points(cut)
    begins = np.cumsum(lengths) - lengths
    shortest, longest = feature.ngrams
    counts = [np.maximum(lengths - (n - 1), 0) for n in range(1, longest + 1)]
    total = sum(counts[shortest - 1 :], np.zeros_like(lengths))
    offsets = np.cumsum(total) - total
    ids = np.empty(int(total.sum()), np.int32)
    target = offsets.copy()  # where the next length's ids of each row go
    rolling = np.zeros(len(codes) + 1, np.uint64)
    for n in range(1, longest + 1):
        # rolling[p] = hash of the n characters from p on: one polynomial step on the hash of the first n - 1.
        rolling = rolling[: max(len(codes) - n + 1, 0)] * _BASE + codes[n - 1 :]
        if n < shortest:
            continue
        count = counts[n - 1]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        sources = np.repeat(begins, count) + within
        ids[np.repeat(target, count) + within] = _buckets(rolling[sources], n, feature.buckets)
        target += count
    return Bags(ids, offsets.astype(np.int32))


def _code_points(texts: pa.StringArray) -> NDArray[np.uint64]:
    """The characters of all texts one after the other, each as a number from 1 on."""
    _, ends, data = texts.buffers()
    if data is None:
        return np.zeros(0, np.uint64)
    places = np.frombuffer(ends, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    joined = str(memoryview(data)[places[0] : places[-1]], "utf-8") if len(places) else ""
    # 0 would leave the rolling hash where it was: "\0a" and "a" would be one.
    return np.frombuffer(joined.encode("utf-32-le"), np.dtype("<u4")).astype(np.uint64) + np.uint64(1)


def _buckets(hashes: NDArray[np.uint64], n: int, buckets: int) -> NDArray[np.int32]:
    """Each hash's bucket: mixed by SplitMix64's finaliser (Steele et al., 2014), then scaled down by its high half."""
    mixed = hashes + np.uint64(n)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    # floor(high half * buckets / 2**32): as uniform as the remainder, without a division.
    mixed >>= np.uint64(32)
    mixed *= np.uint64(buckets)
    mixed >>= np.uint64(32)
    return mixed.astype(np.int32)
