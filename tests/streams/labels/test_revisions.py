"""What says something new, how long things wait, what is remembered: pure rules, without services."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.positions import Ends
from streams.labels.losses import SMALLEST_PROBABILITY, classification, regression
from streams.labels.observed import Names
from streams.labels.recent import Recent
from streams.labels.record import Label, Received
from streams.labels.revisions import Known, decide
from streams.labels.waiting import (
    ORPHAN_PAUSE_SEC,
    ORPHANS_KEPT,
    Waiting,
    read_state,
    state_key,
    state_value,
)

PLACE = ("observations", 0)


def received(partition: int = 0, orphaned: bool = False) -> Received:
    return Received(
        "feedback.colour", partition, 7, 1, b"key", b"\x00raw", [("a", b"b"), ("a", None)], 5, orphaned
    )


def label(at_ms: int, feedback_id: str, truth: str = "red") -> Label:
    return Label(received(), feedback_id, "p", "", at_ms, truth, float("nan"))


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abcdef")), min_size=1), st.integers(0, 20))
def test_the_newest_label_holds_however_the_batches_fall(told: list[tuple[int, str]], cut: int) -> None:
    told = list({feedback_id: (at_ms, feedback_id) for at_ms, feedback_id in told}.values()) * 2
    known: dict[str, Known] = {}
    revisions = []
    for batch in (told[:cut], told[cut:]):
        accepted, changed = decide([(label(*each), "p") for each in batch], known)
        known |= changed
        revisions += accepted
    assert known["p"][:2] == max(told)
    assert [each.revision for each in revisions] == list(range(len(revisions)))
    assert len({each.label.feedback_id for each in revisions}) == len(revisions)


def test_a_repeat_under_a_known_id_is_none_even_with_a_newer_time() -> None:
    _, known = decide([(label(1, "a"), "p"), (label(2, "b"), "p")], {})
    accepted, changed = decide([(label(3, "a"), "p")], known)
    assert (accepted, changed) == ([], {})


def test_losses_are_those_of_the_definition() -> None:
    losses = classification(np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]]), np.array([1, 2]))
    np.testing.assert_allclose(losses.loss, [-np.log(0.5), -np.log(SMALLEST_PROBABILITY)])
    np.testing.assert_allclose(losses.brier, [0.04 + 0.25 + 0.09, 2.0])
    np.testing.assert_allclose(regression(np.array([[3.0]]), np.array([1.0])).loss, [4.0])


def test_what_waits_comes_back_from_the_state_topic_by_partition() -> None:
    mine, other = received(partition=1, orphaned=True), received(partition=11)
    state = {state_key(each, "f/1"): state_value(each) for each in (mine, other)} | {b"metrics/x": b"?"}
    assert read_state(state, [("feedback.colour", 1)]) == {state_key(mine, "f/1"): mine}


def nothing_passed(ends: Ends) -> bool:
    return False


def test_pauses_grow_until_the_sink_has_caught_up() -> None:
    waiting = Waiting()
    waiting.add({b"k": (received(), None)}, {PLACE: 9}, 0.0)
    assert waiting.due(0.1, nothing_passed, 10) == []
    (entry,) = waiting.due(0.6, nothing_passed, 10)
    assert not entry.caught_up
    waiting.defer([entry], 0.6)
    assert waiting.due(1.5, nothing_passed, 10) == []
    (again,) = waiting.due(1.5, lambda ends: ends == {PLACE: 9}, 10)
    assert again is entry
    assert entry.caught_up


def test_what_waits_is_due_when_its_prediction_is_observed() -> None:
    waiting = Waiting()
    by_request, by_prediction = ("colour", "r"), ("colour", 7)
    waiting.add({b"a": (received(), by_request), b"b": (received(), by_prediction)}, {}, 0.0)
    waiting.wake(Names("shape", [7], ["r"]), 0.1)
    waiting.wake(Names("colour", [8], ["q"]), 0.1)
    assert waiting.due(0.1, nothing_passed, 10) == []
    waiting.wake(Names("colour", [7], ["r"]), 0.1)
    assert {entry.key for entry in waiting.due(0.1, nothing_passed, 10)} == {b"a", b"b"}
    waiting.remove([b"a", b"b"])
    waiting.wake(Names("colour", [7], ["r"]), 0.2)
    assert waiting.due(9.0, nothing_passed, 10) == []


def test_what_is_due_comes_in_portions_and_once() -> None:
    waiting = Waiting()
    waiting.add({b"%d" % n: (received(), None) for n in range(5)}, {}, 0.0)
    first, second = waiting.due(9.0, nothing_passed, 3), waiting.due(9.0, nothing_passed, 3)
    assert (len(first), len(second)) == (3, 2)
    assert waiting.due(9.0, nothing_passed, 3) == []


def test_orphans_are_tried_seldom_and_only_so_many_are_kept() -> None:
    waiting = Waiting()
    waiting.add({b"%d" % n: (received(), None) for n in range(ORPHANS_KEPT + 2)}, {}, 0.0)
    for entry in waiting.due(100.0, nothing_passed, ORPHANS_KEPT + 2):
        waiting.orphan(entry, received(orphaned=True), 100.0)
    assert waiting.undecided == 0
    assert waiting.due(100.0 + ORPHAN_PAUSE_SEC - 1, nothing_passed, 10) == []
    surplus = waiting.surplus()
    assert len(surplus) == 2
    waiting.remove(entry.key for entry in surplus)
    assert (len(waiting), waiting.surplus()) == (ORPHANS_KEPT, [])


@pytest.mark.parametrize("passed", [True, False])
def test_the_memory_forgets_only_what_the_sink_has_passed(passed: bool) -> None:
    known = Known(1, "a", 0, "red", 0.0, frozenset("a"))
    recent = Recent()
    recent.add({"p": known})
    assert recent.forget(lambda ends: passed, lambda: {PLACE: 3}) == []
    assert recent.find(["p", "q"]) == {"p": known}
    recent.add({"q": known})
    forgotten = recent.forget(lambda ends: passed and ends == {PLACE: 3}, lambda: {PLACE: 5})
    assert forgotten == (["p"] if passed else [])
    assert set(recent.find(["p", "q"])) == ({"q"} if passed else {"p", "q"})
