"""What was observed lately: found as ClickHouse would find it, and never more than is kept."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.arrow import OBSERVATIONS
from streams.labels.observed import Observed, half
from warehouse.lookups import PREDICTION_SCHEMA


class Row(NamedTuple):
    number: int
    request_id: str = ""
    requested_ms: int = 1000
    arms: tuple[str, ...] = ("champion",)
    status: str = "answered"


def id_of(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(number)))


def record(rows: Sequence[Row], model: str = "colour") -> pa.RecordBatch:
    """As the gateway writes it: first all live rows, then all shadows."""
    filled = dict.fromkeys(OBSERVATIONS.names, "") | {
        "topic_id": bytes(16), "model": model, "propensity": 1.0, "route_revision": 1, "partition": 0, "offset": 0,
        "row": 0, "attempt": 0, "observed_at": 1, "score": 0.5, "scores": [0.25, 0.75], "numbers": [1.0] * 50, "texts": [], "segments": ["x=1"],
        "infer_ms": 1.0,
    }  # fmt: skip
    arms = sorted({arm for row in rows for arm in row.arms})
    return pa.RecordBatch.from_pylist(
        [
            filled
            | {
                "prediction_id": uuid.UUID(id_of(row.number)).bytes,
                "request_id": row.request_id,
                "requested_at": row.requested_ms,
                "arm": arm,
                "status": row.status,
            }
            for arm in arms
            for row in rows
            if arm in row.arms
        ],
        schema=OBSERVATIONS,
    )


def test_a_prediction_is_found_with_all_its_arms_side_by_side() -> None:
    observed = Observed()
    observed.add(record([Row(n, arms=("champion", "major")) for n in range(3)]))
    observed.add(record([Row(n) for n in range(3, 6)]))
    found = observed.predictions("colour", [id_of(1), id_of(4), id_of(9)])
    assert found.schema == PREDICTION_SCHEMA
    rows = sorted([(id_of(1), "champion"), (id_of(1), "major"), (id_of(4), "champion")])
    assert list(zip(found["id"].to_pylist(), found["arm"].to_pylist(), strict=True)) == rows
    assert found["prediction_id_bytes"][0].as_py() == uuid.UUID(rows[0][0]).bytes
    assert found["scores"][0].as_py() == [0.25, 0.75]
    assert found["segments"][0].as_py() == ["x=1"]
    assert observed.predictions("shape", [id_of(1)]).num_rows == 0


@pytest.mark.parametrize("between", [0, 5000], ids=["merged", "apart"])
def test_arms_that_came_in_two_records_are_both_found(between: int) -> None:
    observed = Observed()
    observed.add(record([Row(1, "r", arms=("champion",))]))
    if between:
        observed.add(record([Row(n) for n in range(10, 10 + between)]))
    observed.add(record([Row(1, "r", arms=("major",))]))
    assert observed.predictions("colour", [id_of(1)])["arm"].to_pylist() == ["champion", "major"]
    assert observed.request("colour", "r", 5000) == id_of(1)


def test_rejections_are_not_found() -> None:
    observed = Observed()
    assert observed.add(record([Row(1, "r", status="rejected")])) is None
    names = observed.add(record([Row(2, "s", status="rejected"), Row(3, "t")]))
    assert names == ("colour", [half(id_of(3))], ["t"])
    assert observed.request("colour", "s", 5000) == ""
    assert observed.predictions("colour", [id_of(1), id_of(2)]).num_rows == 0


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), min_size=1, max_size=4), min_size=1
    ),
    st.integers(0, 9),
)
def test_a_request_id_means_the_newest_request_before_the_feedback(
    records: list[list[tuple[str, int]]], at_ms: int
) -> None:
    observed = Observed()
    requested_ms: dict[str, tuple[str, int]] = {}
    for place, told in enumerate(records):
        rows = [Row(10 * place + n, request_id, ms) for n, (request_id, ms) in enumerate(told)]
        observed.add(record(rows))
        requested_ms |= {id_of(row.number): (row.request_id, row.requested_ms) for row in rows}
    before = [ms for request_id, ms in requested_ms.values() if request_id == "a" and ms <= at_ms]
    found = observed.request("colour", "a", at_ms)
    assert requested_ms.get(found, ("", -1)) == (("a", max(before)) if before else ("", -1))


def test_the_oldest_half_goes_when_there_is_no_room() -> None:
    observed = Observed(limit_rows=20)
    for place in range(100):
        observed.add(record([Row(place, f"r{place}")]))
        assert observed.rows <= 20
        assert observed.request("colour", f"r{place}", 5000) == id_of(place)
    assert observed.request("colour", "r79", 5000) == ""
    assert observed.predictions("colour", [id_of(n) for n in range(100)]).num_rows == observed.rows >= 10


def test_only_what_labels_need_is_kept_and_counted() -> None:
    rows, bytes_a_row = 4096, 300
    observed = Observed(limit_bytes=4 * rows * bytes_a_row)
    for place in range(8):
        # 50 features: with them a record would fill its half alone.
        observed.add(record([Row(place * rows + n) for n in range(rows)]))
        assert observed.rows >= min(place + 1, 2) * rows


@pytest.mark.parametrize("labelled", [True, False])
def test_a_label_is_remembered_as_long_as_its_prediction(labelled: bool) -> None:
    observed = Observed(limit_rows=8)
    observed.add(record([Row(1), Row(2)]))
    observed.label([id_of(1), id_of(3)] if labelled else [])
    observed.add(record([Row(3), Row(4)]))
    assert observed.labelled("colour", id_of(1)) is labelled
    assert not observed.labelled("colour", id_of(2))
    assert not observed.labelled("colour", id_of(3)), "it was not here when it was labelled"
