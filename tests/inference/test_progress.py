"""Only a contiguous completed prefix of a partition may be committed, and nothing of an ownership that has ended."""

import uuid
from collections import Counter, deque

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from inference.progress import Assignment, Observed, Output, Progress, Slice

TOPIC_ID = uuid.uuid4()
BYTES = 1 << 30
"""No limit."""


def owned(progress: Progress, partition: int = 0, position: int = 0) -> Assignment:
    assignment = Assignment("requests.toy", partition, TOPIC_ID, position, position)
    progress.assign(assignment)
    return assignment


def begun(progress: Progress, assignment: Assignment, first: int, rows: int) -> Slice:
    progress.polled(assignment, first + rows, rows, 10 * rows, first_ms=first)
    piece = Slice(assignment, first + rows, rows, rows, 10 * rows, first_ms=first)
    assert progress.begin(piece)
    return piece


def output(predictions: int = 0, observed_bytes: int = 0) -> Output:
    nothing = Observed(pa.record_batch({}), np.zeros(0, np.int64), np.zeros(1, np.int64), [])
    return Output([b"p"] * predictions, [None] * predictions, {}, nothing, 0, observed_bytes, [], Counter())


def test_a_slice_waits_for_those_before_it_in_its_partition_and_for_no_other_partition() -> None:
    progress = Progress()
    one, two = owned(progress, 0), owned(progress, 1)
    first, second, other = begun(progress, one, 0, 5), begun(progress, one, 5, 5), begun(progress, two, 0, 3)
    progress.complete(second, output())
    progress.complete(other, output())
    assert progress.completed(1000, BYTES) == [other]
    progress.complete(first, output())
    assert progress.completed(1000, BYTES) == [first, second, other]


def test_confirmed_slices_are_forgotten_and_their_memory_is_given_back() -> None:
    progress = Progress()
    mine = owned(progress)
    first, second = begun(progress, mine, 0, 5), begun(progress, mine, 5, 2)
    assert (progress.held("requests.toy"), mine.oldest_ms) == ((7, 70), 0)
    progress.complete(first, output())
    progress.confirm(progress.completed(1000, BYTES))
    assert (mine.committed, progress.held("requests.toy"), mine.oldest_ms) == (5, (2, 20), 5)
    progress.complete(second, output())
    progress.confirm(progress.completed(1000, BYTES))
    assert (mine.committed, progress.held("requests.toy"), mine.oldest_ms, progress.ready) == (
        7,
        (0, 0),
        None,
        (0, 0),
    )


def test_a_transaction_takes_so_many_bytes_of_outputs_and_at_least_one_slice() -> None:
    progress = Progress()
    mine = owned(progress)
    slices = [begun(progress, mine, first, 5) for first in (0, 5, 10)]
    for piece in slices:
        progress.complete(piece, output(5, 95))
    assert progress.ready == (15, 300)
    assert progress.completed(1000, 1) == slices[:1]
    assert progress.completed(1000, 101) == slices[:2]
    progress.confirm(slices[:1])
    assert progress.ready == (10, 200)
    progress.revoke("requests.toy", 0)
    assert progress.ready == (0, 0)


def test_results_of_an_ended_ownership_are_dropped_also_when_the_partition_came_back() -> None:
    progress = Progress()
    before = owned(progress)
    done, late = begun(progress, before, 0, 5), begun(progress, before, 5, 5)
    progress.complete(done, output())
    progress.revoke("requests.toy", 0)
    again = owned(progress, position=0)
    progress.complete(late, output())
    assert before.ended
    assert not progress.begin(Slice(before, 11, 1, 1, 1, 0))
    assert (progress.completed(1000, BYTES), progress.ready, progress.held("requests.toy")) == (
        [],
        (0, 0),
        (0, 0),
    )
    assert progress.of("requests.toy", 0) is again


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
    st.integers(1, 30),
)
def test_in_whatever_order_slices_complete_the_commits_are_one_unbroken_run(
    lengths: list[int], random: object, limit_rows: int
) -> None:
    progress = Progress()
    mine = owned(progress)
    slices, offset = [], 0
    for rows in lengths:
        slices.append(begun(progress, mine, offset, rows))
        offset += rows
    order = deque(sorted(slices, key=lambda _: random.random()))  # type: ignore[attr-defined]  # hypothesis' Random
    done: list[Slice] = []
    while order or len(done) < len(slices):
        if order:
            progress.complete(order.popleft(), output())
        chosen = progress.completed(limit_rows, BYTES)
        progress.confirm(chosen)
        done += chosen
        assert done == slices[: len(done)]
        assert mine.committed == (done[-1].next_offset if done else 0)
    assert mine.held_records == 0
