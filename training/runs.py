"""What a training run logs while it goes: `<artifacts>/<model>/runs/<retrain_id>.jsonl` and `.csv`, a line a step."""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from schemas.events import Retrain
from training.fit import Report, Step

log = logging.getLogger(__name__)

RUNS: Final = "runs"
_FIELDS: Final = ("epoch", "step", "batch_loss", "val_accuracy", "val_loss")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


class RunLog:
    """Writes each step to both files, the end of each epoch of a full training to the service's log, and passes it on.

    A repeated order starts its files anew.
    """

    def __init__(self, artifacts_dir: Path, order: Retrain, then: Report) -> None:
        self._order, self._then = order, then
        lines, table = run_files(artifacts_dir, order)
        lines.parent.mkdir(parents=True, exist_ok=True)
        self._json = lines.open("wb")
        self._csv = table.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._csv)
        self._rows.writerow(_FIELDS)

    def __call__(self, step: Step) -> None:
        values = [getattr(step, name) for name in _FIELDS]
        self._json.write(msgspec.json.encode(dict(zip(_FIELDS, values, strict=True))) + b"\n")
        self._rows.writerow(["" if value is None else value for value in values])
        if step.val_accuracy is not None:
            self._flush()
            if self._order.kind != "update":
                loss = "" if step.batch_loss is None else f", batch_loss {step.batch_loss:.4f}"
                log.info(
                    "%s %s: epoch %d, step %d%s, val_accuracy %.4f",
                    self._order.model, self._order.new_version, step.epoch, step.step, loss, step.val_accuracy,
                )  # fmt: skip
        self._then(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._json.close()
        self._csv.close()

    def _flush(self) -> None:
        """So that a person who follows the file sees each epoch."""
        self._json.flush()
        self._csv.flush()


def run_files(artifacts_dir: Path, order: Retrain) -> tuple[Path, Path]:
    """Where the run of `order` is logged: JSON lines and CSV."""
    folder, name = artifacts_dir / order.model / RUNS, _UNSAFE.sub("_", order.event_id)
    return folder / f"{name}.jsonl", folder / f"{name}.csv"
