"""On what it was measured: the machine, and the versions of everything that takes part."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil

from compose.embedded import parts

_PACKAGES: Final = (
    "tidemill", "confluent-kafka", "tritonclient", "pyarrow", "msgspec", "numpy", "torch", "chdb", "clickhouse-connect",
    "faust-streaming", "river",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "gpu": None,
        "load_before": round(psutil.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Package and part → version."""
    found = {part.name: _release(part) for part in parts.table() if part.name in ("kafka", "tritonserver")}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _release(part: parts.Part) -> str:
    """The release by which the part is fetched."""
    if part.jars:
        return part.jars[0].rpartition(":")[2]
    return part.archives[0].requirement


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )
