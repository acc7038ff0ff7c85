"""Input and score drift: the merged histograms of consecutive rows against the version's training data, by PSI.

Rows are gathered in blocks, in the order in which partials arrive: a block ends with the first window that fills it to
`drift.min_rows`, or in the middle of one at `WIDEST` times that many rows. Each block is compared once, and each row is in one block.

A subject (a feature, or `score`) is alarmed about when `CONSECUTIVE` blocks in a row exceed the threshold, and not again before as many
in a row stayed below it. A heuristic: see `stats.psi`.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from schemas.artifact import References
from schemas.events import Alert, DriftEvidence, InputPartial
from schemas.identity import name_id
from schemas.spec import ModelSpec
from stats.psi import Stability, stability
from stats.reference import SCORE

CONSECUTIVE: Final = 2
WIDEST: Final = 4
KEPT_VERSIONS: Final = 4


class Episode(msgspec.Struct):
    """Where one subject stands."""

    beyond: int = 0
    """Blocks in a row beyond the threshold."""
    within: int = 0
    """Blocks in a row within it."""
    alerted: bool = False


class Block(msgspec.Struct):
    """The rows being gathered against one artifact's reference."""

    number: int = 0
    start_ms: int = 0
    end_ms: int = 0
    rows: int = 0
    counts: dict[str, list[int]] = {}
    episodes: dict[str, Episode] = {}


class Inputs:
    """All blocks of one partition of `partials`; `state` goes into the save."""

    def __init__(self, state: dict[str, Block] | None = None) -> None:
        self.state: dict[str, Block] = state or {}
        """`model/artifact` → block, the one used last at the end."""

    def add(
        self, spec: ModelSpec, against: References, partial: InputPartial, now_ms: int
    ) -> tuple[list[DriftEvidence], list[Alert]]:
        """Add a partial; what it completes is compared with `against`."""
        name = f"{partial.model}/{partial.artifact}"
        block = self.state.pop(name, None) or Block()
        self.state[name] = block
        self._forget_old(partial.model)
        tests = spec.monitor.drift
        evidence: list[DriftEvidence] = []
        alerts: list[Alert] = []
        if block.rows >= tests.min_rows and partial.window_start_ms >= block.end_ms:
            self._compare(spec, against, partial, block, now_ms, evidence, alerts)
        _gather(block, partial)
        if block.rows >= WIDEST * tests.min_rows:
            self._compare(spec, against, partial, block, now_ms, evidence, alerts)
        return evidence, alerts

    def _compare(
        self, spec: ModelSpec, against: References, of: InputPartial, block: Block, now_ms: int,
        evidence: list[DriftEvidence], alerts: list[Alert],
    ) -> None:  # fmt: skip
        """Compare the block's subjects, and begin the next block."""
        for subject, found in block.counts.items():
            reference = against.features.get(subject)
            if reference is None or len(reference.counts) != len(found):
                continue
            compared = stability(reference, np.array(found, dtype=np.int64))
            threshold = max(spec.monitor.drift.psi_threshold, compared.noise)
            drifted = compared.statistic >= threshold
            evidence.append(
                DriftEvidence(
                    event_id=str(
                        name_id("psi", of.model, of.artifact, subject, block.number, block.start_ms)
                    ),
                    model=of.model,
                    at_ms=now_ms,
                    window_start_ms=block.start_ms,
                    window_sec=(block.end_ms - block.start_ms) // 1000,
                    version=of.version,
                    test="psi",
                    subject=subject,
                    statistic=compared.statistic,
                    threshold=threshold,
                    rows=block.rows,
                    drifted=drifted,
                    revision=block.number,
                )
            )
            if _alarms(block.episodes.setdefault(subject, Episode()), drifted):
                alerts.append(_alert(of, block, subject, compared, threshold, now_ms))
        block.number += 1
        block.rows, block.counts = 0, {}

    def _forget_old(self, model: str) -> None:
        of_model = [name for name in self.state if name.partition("/")[0] == model]
        for name in of_model[:-KEPT_VERSIONS]:
            del self.state[name]


def _gather(block: Block, partial: InputPartial) -> None:
    end_ms = partial.window_start_ms + partial.window_sec * 1000
    if block.rows == 0:
        block.start_ms, block.end_ms = partial.window_start_ms, end_ms
    # A late partial belongs to the block that is being gathered: the span says which windows are in it, the rows count.
    block.start_ms, block.end_ms = min(block.start_ms, partial.window_start_ms), max(block.end_ms, end_ms)
    block.rows += partial.rows
    for subject, counts in partial.counts.items():
        held = block.counts.get(subject)
        if held is None or len(held) != len(counts):
            block.counts[subject] = list(counts)
        else:
            block.counts[subject] = [a + b for a, b in zip(held, counts, strict=True)]


def _alarms(episode: Episode, drifted: bool) -> bool:
    """Advance the episode by one block; True if it is to be alarmed about now."""
    if drifted:
        episode.beyond, episode.within = episode.beyond + 1, 0
    else:
        episode.beyond, episode.within = 0, episode.within + 1
    if episode.within >= CONSECUTIVE:
        episode.alerted = False
    if episode.beyond >= CONSECUTIVE and not episode.alerted:
        episode.alerted = True
        return True
    return False


def _alert(of: InputPartial, block: Block, subject: str, found: Stability, threshold: float, now_ms: int) -> Alert:  # fmt: skip
    score = subject == SCORE
    what = "scores are" if score else f"input {subject!r} is"
    return Alert(
        event_id=str(name_id("input alert", of.model, of.artifact, subject, block.number, block.start_ms)),
        model=of.model,
        at_ms=now_ms,
        kind="score_drift" if score else "input_drift",
        severity="minor" if score else "normal",
        subject=subject,
        version=of.version,
        message=f"{of.model}: {what} not as in the training data of {of.version}: "
        f"PSI {found.statistic:.3f} over {threshold:.3f} in {CONSECUTIVE} blocks of rows in a row",
        evidence={
            "test": "psi",
            "statistic": found.statistic,
            "threshold": threshold,
            "noise": found.noise,
            "rows": block.rows,
            "blocks": CONSECUTIVE,
            "artifact": of.artifact,
            "window_start_ms": block.start_ms,
            "window_end_ms": block.end_ms,
        },
    )
