"""One HTML page that stands alone: each benchmark's picture, figures and turns, and the machine."""

from __future__ import annotations

import base64
import io
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib
from jinja2 import Environment, StrictUndefined

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.report import text

PAGE: Final = "index.html"
RESULTS: Final = "results.json"
TEMPLATE: Final = Path(__file__).with_name("page.html")
_OURS: Final = "#0b6e4f"
_OTHERS: Final = "#8a94a0"
_NOT_OURS: Final = ("limit", "bare", "river", "MLServer", "Quix", "Faust", "Bytewax", "echo", "triton")


def write(results: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str], folder: Path) -> Path:
    """Write page and results into `folder`; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(dict(results), indent=2) + "\n", encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = text
    environment.filters["median"] = statistics.median
    html = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        results=results, failed=failed, pictures={name: pictures(found) for name, found in results.items()}
    )
    path = folder / PAGE
    path.write_text(html, encoding="utf-8")
    return path


def pictures(found: Mapping[str, Any]) -> list[str]:
    """One picture for each unit, as base64 of a PNG: medians as bars, turns as points on them."""
    by_unit: dict[str, dict[str, list[float]]] = {}
    for name, values in found["measured"].items():
        if values:
            by_unit.setdefault(found["units"][name], {})[name] = values
    return [_bars(unit, lines) for unit, lines in by_unit.items()]


def _bars(unit: str, lines: Mapping[str, list[float]]) -> str:
    figure, axes = plt.subplots(figsize=(9, 0.7 + 0.32 * len(lines)), constrained_layout=True)
    for place, (name, values) in enumerate(lines.items()):
        colour = _OTHERS if name.removeprefix("CPU ").startswith(_NOT_OURS) else _OURS
        middle = statistics.median(values)
        axes.barh(place, middle, color=colour, alpha=0.85)
        axes.plot(values, [place] * len(values), "|", color="black", markersize=8)
        axes.annotate(f" {text(middle)}", (max(values), place), va="center", fontsize=8)
    axes.set_yticks(range(len(lines)), list(lines), fontsize=8)
    axes.invert_yaxis()
    largest, least = (pick(statistics.median(values) for values in lines.values()) for pick in (max, min))
    if least > 0 and largest / least > 100:
        axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel(unit)
    axes.grid(alpha=0.25, axis="x")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
