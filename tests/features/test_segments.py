from __future__ import annotations

import msgspec
import numpy as np
from hypothesis import given

from features.columns import Columns
from features.segments import segments
from schemas.arrow import STRINGS
from schemas.spec import ModelSpec, Monitor
from tests.features.rows import EVERYTHING, columns, columns_of


def test_each_row_has_one_segment_for_each_that_the_spec_declares() -> None:
    numbers: list[list[float]] = [[0, 0.25, 1], [0, 0.2499, 0], [0, 1, np.nan], [0, np.nan, 1], [0, -3, 0]]
    texts = [["", colour, ""] for colour in ("red", "purple", "", "blue", "green")]
    assert segments(EVERYTHING, columns_of(EVERYTHING, numbers, texts)).to_pylist() == [
        ["share=0.25..0.5", "colour=red", "member=true"],
        ["share=0..0.25", "colour=other", "member=false"],
        ["share=0.75..1", "colour=missing", "member=missing"],
        ["share=missing", "colour=blue", "member=true"],
        ["share=0..0.25", "colour=green", "member=false"],
    ]


def test_a_range_begins_at_its_edge_even_where_float32_rounds_it_down() -> None:
    spec = _monitoring(("share:10",))
    found = segments(spec, columns_of(spec, [[0, 0.7, 0]], [["", "", ""]]))
    assert float(np.float32(0.7)) < 0.7
    assert found.to_pylist() == [["share=0.7..0.8"]]


def test_without_declared_segments_every_list_is_empty() -> None:
    spec = _monitoring(())
    assert segments(spec, columns_of(spec, [[0, 0, 0]] * 2, [["", "", ""]] * 2)).to_pylist() == [[], []]


@given(columns())
def test_any_batch_gives_a_list_for_each_row_in_the_observations_type(batch: Columns) -> None:
    found = segments(EVERYTHING, batch)
    assert found.type == STRINGS
    assert [len(row) for row in found.to_pylist()] == [3] * batch.rows


def _monitoring(names: tuple[str, ...]) -> ModelSpec:
    return msgspec.structs.replace(EVERYTHING, monitor=Monitor(segments=names))
