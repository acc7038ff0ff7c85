"""A test of a bounded mean that may be looked at after every row: testing by betting.

Null hypothesis: every x has conditional mean ≤ 0, with x ≥ -bound. Whoever bets a share `lam` of their wealth on x > 0 holds
prod(1 + lam * x), which under the null is a non-negative supermartingale that starts at 1: an e-process. By Ville's inequality
it ever exceeds 1/alpha with probability at most alpha, however often it is looked at. The bet is the growth-rate-adaptive one
(aGRAPA), chosen from the rows before, so it is predictable.

Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024), sections 4 and B.3.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

_CHUNK_ROWS: Final = 32
"""The bet is renewed after this many rows; any schedule that looks back only is valid."""
_MOST_OF_WEALTH: Final = 0.5


class BettingTest(msgspec.Struct, frozen=True, kw_only=True):
    """State of one test: an immutable value, so that it can be stored with the offsets that it covers."""

    bound: float
    """x is never below -bound."""
    rows: int = 0
    total: float = 0.0
    squares: float = 0.0
    log_e: float = 0.0
    """Logarithm of the e-value now."""
    log_e_max: float = 0.0
    """Its highest value so far: what Ville's inequality speaks of."""

    @property
    def mean(self) -> float:
        """Mean of x so far, 0 before the first row."""
        return self.total / self.rows if self.rows else 0.0

    def rejects(self, alpha: float) -> bool:
        """Whether the null was ever rejected at level `alpha`."""
        return self.log_e_max >= math.log(1 / alpha)


def advance(test: BettingTest, x: NDArray[np.float64]) -> BettingTest:
    """The test after the rows `x`, shape (n,), in order.

    Raises:
        ValueError: an x below -bound, or not finite.
    """
    if not np.all(np.isfinite(x)) or (x.size and float(x.min()) < -test.bound - 1e-9):
        raise ValueError(f"expected finite x ≥ {-test.bound}, found {x.min() if x.size else x}")
    rows, total, squares = test.rows, test.total, test.squares
    log_e, log_e_max = test.log_e, test.log_e_max
    for start in range(0, len(x), _CHUNK_ROWS):
        chunk = x[start : start + _CHUNK_ROWS]
        # One imagined row at 0 with variance 1/4 keeps the first bets small.
        mean = total / (rows + 1)
        variance = (0.25 + squares - total * mean) / (rows + 1)
        bet = (
            min(max(mean / (variance + mean * mean), 0.0), _MOST_OF_WEALTH / test.bound) if mean > 0 else 0.0
        )
        path = log_e + np.cumsum(np.log1p(bet * chunk))
        log_e, log_e_max = float(path[-1]), max(log_e_max, float(path.max()))
        rows, total, squares = (
            rows + len(chunk),
            total + float(chunk.sum()),
            squares + float((chunk**2).sum()),
        )
    return BettingTest(
        bound=test.bound, rows=rows, total=total, squares=squares, log_e=log_e, log_e_max=log_e_max
    )
