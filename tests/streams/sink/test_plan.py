from __future__ import annotations

import uuid

import pytest

from streams.sink.plan import Plan, decode_plan, encode_plan

PLAN = Plan(topic_id=uuid.UUID(int=7), end=1_000, rows=500)


def test_a_plan_survives_the_commit_metadata() -> None:
    assert decode_plan(encode_plan(PLAN)) == PLAN


def test_a_plan_holds_the_topic_id_the_end_and_the_rows_and_nothing_else() -> None:
    assert encode_plan(PLAN) == f'{{"topic_id":"{PLAN.topic_id}","end":1000,"rows":500}}'


@pytest.mark.parametrize("metadata", ["", None])
def test_an_offset_that_a_person_committed_has_no_plan(metadata: str | None) -> None:
    assert decode_plan(metadata) is None


@pytest.mark.parametrize("metadata", ["consumer-1", "{}", '{"topic_id":"x","end":1,"rows":1}'])
def test_metadata_that_is_no_plan_is_named_not_ignored(metadata: str) -> None:
    with pytest.raises(ValueError, match="is no plan"):
        decode_plan(metadata)
