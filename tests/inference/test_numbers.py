"""Which rows have a number that cannot be served: the same of wide rows, which are seen to be good at once, and of narrow ones."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inference.numbers import WIDE, Ranges
from schemas.spec import decode_spec

LIMITS = np.nextafter(np.float64(1), 2)


def ranges(width: int) -> Ranges:
    features = [
        f'x{i} = {{ type = "float", min = 0, max = 1, missing = "{"mean" if i % 2 else "reject"}" }}' for i in range(width)
    ]  # fmt: skip
    return Ranges.of(
        decode_spec(
            'name = "toy"\ntask = "regression"\nmodule = "m:T"\n[rollout]\nmetric = "squared_error"\n[features]\n'
            + "\n".join(features),
            "toy",
        )
    )


NARROW, WIDER = ranges(4), ranges(WIDE)
VALUES = st.sampled_from([0.0, 1.0, 0.5, -0.0, np.nan, np.inf, -np.inf, float(LIMITS), -5e-324, 2.0])


@given(hnp.arrays(np.float64, st.tuples(st.integers(0, 5), st.just(4)), elements=VALUES))
def test_wide_rows_are_judged_as_narrow_ones(numbers: np.ndarray) -> None:
    wide = np.tile(numbers, (1, WIDE // 4))
    found = NARROW.outside(numbers).tolist()
    assert WIDER.outside(wide).tolist() == found
    good = [
        all(0 <= value <= 1 or (np.isnan(value) and place % 2 == 1) for place, value in enumerate(row))
        for row in numbers
    ]
    assert found == [row for row, is_good in enumerate(good) if not is_good]


@given(st.integers(0, WIDE - 1), VALUES)
def test_one_bad_number_anywhere_refuses_its_row_alone(place: int, value: float) -> None:
    numbers = np.full((3, WIDE), 0.5, np.float32)
    numbers[1, place] = value
    is_good = 0 <= numbers[1, place] <= 1 or (np.isnan(value) and place % 2 == 1)
    assert WIDER.outside(numbers).tolist() == ([] if is_good else [1])
