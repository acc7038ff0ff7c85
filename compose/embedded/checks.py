"""What `doctor` looks at. Standard library only: the launcher runs it even where nothing is installed yet."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import socket
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from compose.embedded import parts, running
from schemas.errors import UserError

OK, WARN, FAIL = "OK", "WARN", "FAIL"
FIXED_PORTS = {
    "kafka": 9092,
    "kafka controller": 9093,
    "triton": 8000,
    "triton gRPC": 8001,
    "triton metrics": 8002,
    "clickhouse": 8123,
}
INSTALL = "run any ./tidemill command: it installs what is missing"


class Check(NamedTuple):
    name: str
    status: str
    found: str
    mend: str = ""


def all_checks(data_dir: Path = running.DEFAULT_DATA_DIR) -> list[Check]:
    return [check for checks in (machine(), installation(), stack(data_dir)) for check in checks]


def failures(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if check.status == FAIL]


def report(checks: Sequence[Check]) -> int:
    """Print one line a check and the mend below it; the exit code."""
    for check in checks:
        print(f"{check.status:<5} {check.name:<16} {check.found}")
        if check.mend and check.status != OK:
            print(f"{'':<22} → {check.mend}")
    return int(bool(failures(checks)))


def machine() -> Iterator[Check]:
    system = f"{os.uname().sysname} {os.uname().machine}"
    yield Check(
        "platform",
        OK if system == "Linux x86_64" else FAIL,
        system,
        "tritonserver's wheel is for Linux on x86-64",
    )
    yield _python()
    glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "another C library").removeprefix("glibc ")
    recent = glibc[0].isdigit() and tuple(map(int, glibc.split(".")[:2])) >= (2, 35)
    yield Check(
        "glibc", OK if recent else FAIL, glibc, "2.35 or later is needed: Ubuntu 22.04, Debian 12, or newer"
    )
    yield _memory()
    free_gb = shutil.disk_usage(parts.ROOT).free / 1e9
    status = FAIL if free_gb < 2.2 else WARN if free_gb < 10 else OK
    yield Check(
        "disk",
        status,
        f"{free_gb:.1f} GB free at {parts.ROOT}",
        "`up` needs 2.2 GB, a busy stack more: free some, or --data DIR",
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Check(
        "open files",
        OK if soft >= 1024 else WARN,
        f"limit {soft} (hard {hard})",
        "ulimit -n 4096: each Kafka partition holds files open",
    )
    shm = Path("/dev/shm")
    free_shm_mb = shutil.disk_usage(shm).free / 1e6 if shm.is_dir() else 0
    yield Check(
        "shared memory", OK if free_shm_mb >= 64 else FAIL, f"{free_shm_mb:.0f} MB free in /dev/shm",
        "Triton's Python backend needs it: with containers, --shm-size=256m",
    )  # fmt: skip
    year = time.gmtime().tm_year
    yield Check(
        "clock",
        OK if 2025 <= year < 2100 else FAIL,
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "set the clock: identities are made from time",
    )


def _python() -> Check:
    version = sys.version.split()[0]
    name = sysconfig.get_config_var("INSTSONAME") or "libpython3.11.so.1.0"
    folder = sysconfig.get_config_var("LIBDIR") or ""
    mend = "CPython 3.11 with its shared library; on Debian or Ubuntu: python3.11-venv libpython3.11"
    if sys.version_info[:2] != (3, 11) or sys.implementation.name != "cpython":
        return Check("python", FAIL, f"{sys.implementation.name} {version}", mend)
    try:
        ctypes.CDLL(str(Path(folder) / name) if (Path(folder) / name).exists() else name)
    except OSError:
        return Check("python", FAIL, f"CPython {version} without {name}", mend)
    return Check("python", OK, f"CPython {version} with {name}")


def _memory() -> Check:
    amounts = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE))
    free_gb = int(amounts["MemAvailable"]) * 1024 / 1e9
    status = FAIL if free_gb < 2 else WARN if free_gb < 5 else OK
    return Check(
        "memory",
        status,
        f"{free_gb:.1f} GB available",
        "the whole stack takes up to 5 GB: end other programs",
    )


def installation() -> Iterator[Check]:
    yield _packages()
    missing = parts.missing()
    if missing:
        yield Check("parts", FAIL, f"missing: {', '.join(part.name for part in missing)}", INSTALL)
    else:
        damaged = parts.damaged()
        names = ", ".join(part.name for part in parts.table())
        bad = f"altered: {', '.join(damaged[:5])}" + (
            f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        )
        folders = " ".join(
            str(parts.parts_dir() / name) for name in sorted({name.partition("/")[0] for name in damaged})
        )
        mend = (
            f"rm -r {folders} {parts.STATE_DIR / 'installed'}, then any ./tidemill command fetches them again"
        )
        yield Check(
            "parts", FAIL if damaged else OK, bad if damaged else f"{names}: every file has its hash", mend
        )


def _packages() -> Check:
    """`.venv` against requirements.lock, by the names and versions of the installed distributions."""
    site = parts.ROOT / ".venv" / "lib" / "python3.11" / "site-packages"
    if not site.is_dir():
        return Check("packages", FAIL, "there is no .venv", INSTALL)
    lock = (parts.ROOT / "requirements.lock").read_text()
    locked = {
        _normal(name): version
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", lock, re.MULTILINE)
    }
    pairs = (folder.name.removesuffix(".dist-info").split("-", 1) for folder in site.glob("*.dist-info"))
    installed = {_normal(name): version for name, version in pairs}
    different = [
        f"{name} {installed.get(name, 'missing')} (locked {version})"
        for name, version in locked.items()
        if installed.get(name) != version
    ]
    if different:
        shown = "; ".join(different[:4]) + (f"; and {len(different) - 4} more" if len(different) > 4 else "")
        return Check(
            "packages",
            FAIL,
            shown,
            f"rm {parts.ROOT / '.venv' / 'tidemill-requirements'} {parts.STATE_DIR / 'installed'}, then any ./tidemill command",
        )
    return Check("packages", OK, f"{len(locked)} packages as locked")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def stack(data_dir: Path) -> Iterator[Check]:
    if running.owner_pid(data_dir) is None:
        yield Check("stack", OK, f"none runs on {data_dir}")
        for name, port in FIXED_PORTS.items():
            with socket.socket() as probe:
                taken = probe.connect_ex(("127.0.0.1", port)) == 0
            if taken:
                yield Check(
                    f"port {port}",
                    WARN,
                    f"taken ({name} would use it)",
                    "end its owner, or use `up --ports ephemeral`",
                )
        return
    try:
        found = running.status(data_dir)
    except UserError as error:
        yield Check("stack", FAIL, str(error), "`tidemill down`, then `tidemill up`")
        return
    if found["ready"]:
        yield Check("stack", OK, f"{len(found['processes'])} processes ready on {data_dir}")
    else:
        yield Check("stack", FAIL, running.laggards(found), "`tidemill logs PROCESS` shows why")
    for row in found["processes"]:
        if row["restarts"]:
            yield Check(
                row["process"],
                WARN,
                f"restarted {row['restarts']} times; last: {row['last_error']}",
                f"`tidemill logs {row['process']}`",
            )
