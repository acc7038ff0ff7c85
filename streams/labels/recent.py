"""What was joined so lately that ClickHouse may not know it yet.

Whether a label says something new depends on the newest label of its prediction. ClickHouse knows it once the sink has brought
the outcome there; until then it is remembered here. The memory has two generations: the young one collects; from time to time it
becomes the old one together with the end offsets of `outcomes` and `observations` seen after its last commit, and is forgotten when
the sink has passed those, and the reader of `observations` here too. So an entry is forgotten only after ClickHouse has it, and for
every prediction at least one of the two answers; and whoever holds its observation can be told then that it has a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from runtime.positions import Ends
from streams.labels.revisions import Known


class Recent:
    """The newest label by prediction id, of outcomes that the sink has not confirmed."""

    def __init__(self) -> None:
        self._young: dict[str, Known] = {}
        self._old: dict[str, Known] = {}
        self._old_ends: Ends = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def find(self, prediction_ids: Iterable[str]) -> dict[str, Known]:
        """What is remembered of `prediction_ids`."""
        found = {}
        for prediction_id in prediction_ids:
            known = self._young.get(prediction_id) or self._old.get(prediction_id)
            if known is not None:
                found[prediction_id] = known
        return found

    def add(self, known: Mapping[str, Known]) -> None:
        """Remember what was just committed."""
        self._young.update(known)

    def forget(self, passed: Callable[[Ends], bool], ends: Callable[[], Ends]) -> list[str]:
        """Drop what ClickHouse has, and return its prediction ids: `passed` tells whether such offsets were passed, `ends` the
        present ones."""
        forgotten: list[str] = []
        if self._old and passed(self._old_ends):
            forgotten, self._old = list(self._old), {}
        if self._young and not self._old:
            self._old, self._young, self._old_ends = self._young, {}, ends()
        return forgotten

    def clear(self) -> None:
        """Forget all: another process may have joined labels since."""
        self._young, self._old, self._old_ends = {}, {}, {}
