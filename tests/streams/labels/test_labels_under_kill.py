"""SIGKILL under load: every prediction ends with its newest label, once, with its own losses."""

from __future__ import annotations

import itertools
import math
import random
import threading
import uuid
from collections import defaultdict
from functools import partial
from typing import Any

import msgspec
import pytest

from runtime.settings import Settings
from schemas.feedback import Feedback
from schemas.topics import OUTCOMES
from tests.services import Service
from tests.streams.labels.loop import CLASSES, Loop
from tests.waiting import until

pytestmark = pytest.mark.stack
PREDICTIONS, KILLS, ARMS = 3000, 3, ("champion", "major")


class Sink(threading.Thread):
    """Brings observations and outcomes into ClickHouse, again and again."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self._loop = Loop(settings)
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.1):
            self._loop.sink()

    def end(self) -> None:
        self._ended.set()
        self.join()


def test_outcomes_are_exact_whatever_is_killed(settings: Settings, loop: Loop, service: Service) -> None:
    chance = random.Random(7)
    scores = [round(chance.uniform(0.05, 0.95), 3) for _ in range(PREDICTIONS)]
    newest: dict[str, tuple[int, str, str]] = {}
    score_of: dict[str, float] = {}
    sink = Sink(settings)
    sink.start()
    try:
        for place, chunk in enumerate(_chunks(scores, 300)):
            ids = loop.predict(chunk, arms=ARMS)
            score_of |= dict(zip(ids, chunk, strict=True))
            end = loop.end_of(OUTCOMES.name)
            for id_ in ids:
                for _ in range(chance.choice((1, 1, 1, 2, 3))):
                    at_ms, truth = chance.randrange(1_000_000), chance.choice(CLASSES)
                    label = Feedback(
                        kind="label",
                        value=truth,
                        prediction_id=id_,
                        at_ms=at_ms,
                        feedback_id=f"{id_}-{at_ms}",
                    )
                    for _ in range(chance.choice((1, 1, 2))):
                        loop.tell(msgspec.json.encode(label), key=id_.encode(), flush=False)
                    newest[id_] = max(newest.get(id_, (-1, "", "")), (at_ms, f"{id_}-{at_ms}", truth))
            loop.flush()
            if place % 3 == 2 and place // 3 < KILLS:
                # Amid its work: after it has committed something of this chunk, and before it can be through.
                until(partial(_longer, loop, end), "the stage's next commit")
                service.restart()
        rows = until(
            lambda: _complete(loop, newest), "an outcome of the newest label of every prediction", 90
        )
    finally:
        sink.end()
    assert len({row["outcome_id"] for row in rows}) == len(rows)
    by_arm: dict[tuple[bytes, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_arm[row["prediction_id"], row["arm"]].append(row)
    assert len(by_arm) == PREDICTIONS * len(ARMS)
    for revisions in by_arm.values():
        assert [row["revision"] for row in revisions] == list(range(len(revisions)))
        for before, after in itertools.pairwise(revisions):
            assert before["labeled_at"] < after["labeled_at"] or before["feedback_id"] < after["feedback_id"]
            assert after["previous_truth"] == before["truth"]
            assert after["previous_loss"] == pytest.approx(before["loss"], rel=1e-5)
            assert before["joined_at"] <= after["joined_at"]
    for row in rows:
        red = score_of[_text(row["prediction_id"])]
        probability = red if row["truth"] == "red" else 1 - red
        assert row["loss"] == pytest.approx(-math.log(probability), rel=1e-4)
        assert row["brier"] == pytest.approx(2 * (1 - probability) ** 2, rel=1e-4)
        assert row["correct"] == (row["label"] == row["truth"])


def _longer(loop: Loop, end: int) -> bool:
    return loop.end_of(OUTCOMES.name) > end


def _chunks(values: list[float], size: int) -> list[list[float]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _text(id_: bytes) -> str:
    return str(uuid.UUID(bytes=id_))


def _complete(loop: Loop, newest: dict[str, tuple[int, str, str]]) -> list[dict[str, Any]]:
    """All outcomes, once the last of each prediction and arm has its newest label; none before."""
    rows = loop.outcomes(list(newest))
    last = {(_text(row["prediction_id"]), row["arm"]): row for row in rows}
    done = len(last) == len(newest) * len(ARMS) and all(
        (row["feedback_id"], row["truth"]) == newest[id_][1:] for (id_, _), row in last.items()
    )
    return rows if done else []
