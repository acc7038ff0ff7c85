"""The report: one HTML page that stands alone, and the picture in it as a PNG."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib
import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from cli.demo.references import rolling

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PICTURE: Final = "accuracy.png"
PAGE: Final = "index.html"
FIGURES: Final = "figures.json"
TEMPLATE: Final = Path(__file__).with_name("page.html")

_COLOURS: Final = {"with the loop": "#0b6e4f", "version 1, left alone": "#c8553d"}
_MARKS: Final = {
    "drift": ("drift alert", "#8e44ad", "v"),
    "promote_update": ("update live", "#0b6e4f", "|"),
    "promote_major": ("major live", "#1f4e9c", "^"),
    "start_shadow": ("major in shadow", "#1f4e9c", "."),
    "refuse": ("refused", "#7f8c8d", "x"),
    "revert": ("revert", "#d35400", "<"),
    "rollback": ("rollback", "#d35400", "<"),
    "kill": ("kill", "#000000", "X"),
}


class Mark(NamedTuple):
    """Something that happened at a row of the stream."""

    kind: str
    row: int
    what: str


class Report(NamedTuple):
    """Everything the page shows."""

    title: str
    figures: Mapping[str, Any]
    sql: Mapping[str, str]
    right: Mapping[str, NDArray[np.bool_]]
    """Arm or reference → whether it was right, row by row, in stream order."""
    first_row: int
    marks: Sequence[Mark]
    lineage: Mapping[str, Any]
    audit: Mapping[str, Any]
    machine: str
    closing: str
    """What it comes to, in a sentence."""


def write(report: Report, folder: Path) -> Path:
    """Write the page, the picture and the figures into `folder`; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(report, folder / PICTURE)
    (folder / FIGURES).write_text(json.dumps(dict(report.figures), indent=2) + "\n", encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    picture = base64.b64encode((folder / PICTURE).read_bytes()).decode("ascii")
    accuracies = {name: float(right.mean()) for name, right in report.right.items() if right.size}
    html = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report, picture=picture, accuracies=accuracies, counts=_counts(report.marks)
    )
    page = folder / PAGE
    page.write_text(html, encoding="utf-8")
    return page


def draw(report: Report, path: Path) -> None:
    """Accuracy over the stream, with what happened on the way."""
    figure, (axes, events) = plt.subplots(
        2, 1, figsize=(12, 7), sharex=True, gridspec_kw={"height_ratios": [4, 1]}, constrained_layout=True
    )
    longest = max((right.size for right in report.right.values()), default=0)
    window = max(min(1000, longest // 10), 1)
    for name, right in report.right.items():
        if right.size < window:
            continue
        main = name in _COLOURS
        rows = report.first_row + window - 1 + np.arange(right.size - window + 1)
        label = f"{name} ({right.mean():.3f})"
        if main:
            axes.plot(
                rows, rolling(right, window), label=label, color=_COLOURS[name], linewidth=2.2, zorder=3
            )
        else:
            axes.plot(rows, rolling(right, window), label=label, linewidth=0.9, alpha=0.55)
    axes.set_ylabel(f"accuracy over the last {window:,} rows")
    axes.set_title(report.title)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", fontsize=8, ncols=2)
    kinds = [kind for kind in _MARKS if any(mark.kind == kind for mark in report.marks)]
    for height, kind in enumerate(kinds):
        label, colour, shape = _MARKS[kind]
        places = [mark.row for mark in report.marks if mark.kind == kind]
        events.plot(places, [height] * len(places), shape, color=colour, markersize=7, linestyle="none")
        if kind in ("kill", "promote_major", "revert"):
            for row in places:
                axes.axvline(row, color=colour, linewidth=0.8, linestyle=":")
    events.set_yticks(
        range(len(kinds)), [f"{_MARKS[kind][0]} ({_counts(report.marks)[kind]})" for kind in kinds]
    )
    events.set_ylim(-0.7, max(len(kinds), 1) - 0.3)
    events.set_xlabel("row of the stream")
    events.grid(alpha=0.25, axis="x")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _counts(marks: Sequence[Mark]) -> dict[str, int]:
    return {kind: sum(mark.kind == kind for mark in marks) for kind in _MARKS}
