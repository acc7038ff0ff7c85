"""Make `.venv` and fetch the parts, then become the command line. Run by `./tidemill`, standard library only.

Every step is skipped when its result is there, so an interrupted installation continues where it stopped: uv and pip keep what they have
downloaded in their caches, parts complete one by one. The stamp is written last; with it the launcher no longer comes here.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cli.commands import COMMANDS  # noqa: E402
from compose.embedded import checks, parts  # noqa: E402

VENV = ROOT / ".venv"
TOOLS = parts.STATE_DIR / "tools"
STAMP_FILE = parts.STATE_DIR / "installed"
REQUIREMENTS = ROOT / "requirements.lock"
VENV_STAMP = VENV / "tidemill-requirements"


class BootstrapError(Exception):
    """The installation cannot go on; one line that says why."""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(stamp: str, arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        return show_help()
    if arguments[0] == "doctor" and not VENV_STAMP.exists():
        return checks.report(checks.all_checks())
    try:
        parts.STATE_DIR.mkdir(exist_ok=True)
        with (parts.STATE_DIR / "bootstrap.lock").open("w") as lock:
            wait_for(lock.fileno())
            install(stamp)
    except KeyboardInterrupt:
        say("\ntidemill: interrupted; what is complete is kept, the same command continues")
        return 130
    except (BootstrapError, parts.PartError) as error:
        say(f"tidemill: {error}")
        return 1
    return become_the_command_line(arguments)


def become_the_command_line(arguments: list[str]) -> NoReturn:
    python = VENV / "bin" / "python"
    os.execv(python, [str(python), "-P", "-m", "cli", *arguments])


def show_help() -> int:
    print("Usage: ./tidemill COMMAND [ARGS]...\n\nCommands:")
    for name, command in COMMANDS.items():
        print(f"  {name:<10}{command.help}")
    print(f"\nNot installed yet: the first command downloads {plan_line()}.")
    return 0


def wait_for(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("Another ./tidemill is installing; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)


def install(stamp: str) -> None:
    """Steps in order; each is skipped when its result is there."""
    if not venv_is_current() or parts.missing():
        announce()
        check_disk()
    if not venv_is_current():
        uv = make_tools()
        make_venv(uv)
    fetch_parts()
    STAMP_FILE.write_text(stamp + "\n")


def venv_is_current() -> bool:
    return VENV_STAMP.is_file() and VENV_STAMP.read_text() == f"{parts.sha256_of(REQUIREMENTS)} {ROOT}"


def wanted() -> list[tuple[str, int, int]]:
    """(what, bytes to download, bytes on disk) of everything that is not there yet."""
    table = tomllib.loads(parts.TABLE_FILE.read_text())["python"]
    packages = [] if venv_is_current() else [(table["what"], table["download_bytes"], table["disk_bytes"])]
    return packages + [(part.what, part.download_bytes, part.disk_bytes) for part in parts.missing()]


def plan_line() -> str:
    rows = wanted()
    return f"{sum(row[1] for row in rows) / 1e9:.1f} GB and needs {sum(row[2] for row in rows) / 1e9:.1f} GB of disk in {ROOT}"


def announce() -> None:
    say(f"Tidemill downloads {plan_line()}, once:")
    for what, download_bytes, disk_bytes in wanted():
        say(f"  {download_bytes / 1e6:7,.0f} MB  → {disk_bytes / 1e6:7,.0f} MB  {what}")


def check_disk() -> None:
    needed = sum(row[2] for row in wanted())
    free = shutil.disk_usage(ROOT).free
    if free < needed:
        raise BootstrapError(
            f"{ROOT} has {free / 1e9:.1f} GB free, the installation needs {needed / 1e9:.1f} GB"
        )


def make_tools() -> Path:
    """uv, and a pip with setuptools, in a small environment of their own. Returns uv's path."""
    lock = ROOT / "compose" / "bootstrap.lock"
    stamp = TOOLS / "tidemill-requirements"
    if not stamp.is_file() or stamp.read_text() != parts.sha256_of(lock):
        say("Installing the installer (uv)")
        shutil.rmtree(TOOLS, ignore_errors=True)
        run(
            [sys.executable, "-m", "venv", str(TOOLS)],
            "cannot make a virtual environment (on Debian or Ubuntu: python3.11-venv)",
            quiet=True,
        )
        pip = [str(TOOLS / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        run([*pip, "install", "--quiet", "--require-hashes", "--requirement", str(lock)], "cannot install uv")
        stamp.write_text(parts.sha256_of(lock))
    return TOOLS / "bin" / "uv"


def make_venv(uv: Path) -> None:
    say("Installing the Python packages into .venv")
    environment = uv_environment(os.environ, pip_configuration(TOOLS / "bin" / "python"))
    VENV_STAMP.unlink(missing_ok=True)
    python = str(VENV / "bin" / "python")
    if not (VENV / "bin" / "python").exists():
        run(
            [str(uv), "venv", "--quiet", "--python", sys.executable, str(VENV)],
            "cannot make .venv",
            environment,
        )
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    install = [str(uv), "pip", "install", "--python", python, *quiet]
    run(
        [*install, "--compile-bytecode", "--require-hashes", "--requirement", str(REQUIREMENTS)],
        "cannot install requirements.lock (the lines above say why)", environment,
    )  # fmt: skip
    run(
        [*install, "--no-deps", "--no-build-isolation", "--config-setting", "editable_mode=compat", "--editable", str(ROOT)],
        "cannot install the project into .venv", environment,
    )  # fmt: skip
    VENV_STAMP.write_text(f"{parts.sha256_of(REQUIREMENTS)} {ROOT}")


def fetch_parts() -> None:
    """What is missing of the parts, and what is made of them."""
    # In a process of its own, since jgo and the Java runtime live in .venv.
    done = subprocess.run(
        [str(VENV / "bin" / "python"), "-P", "-m", "compose.embedded.parts"], cwd=ROOT, check=False
    )
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise BootstrapError(
            "the parts are not complete (the line above says why); the same command continues"
        )


def pip_configuration(python: Path) -> dict[str, str]:
    """pip's settings as `name: value`, of its files and its environment alike (`global.index-url: …`, `:env:.find-links: …`)."""
    done = subprocess.run(
        [str(python), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BootstrapError(f"pip cannot read its configuration: {done.stderr.strip()}")
    settings = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip("'\"")
    return settings


def uv_environment(environment: Mapping[str, str], pip: Mapping[str, str]) -> dict[str, str]:
    """uv does not read pip's configuration, so a machine with a mirror, a certificate or a folder of wheels would be ignored.

    What is set for uv itself wins.
    """
    found = {
        "UV_DEFAULT_INDEX": pip.get("index-url"),
        "UV_INDEX": pip.get("extra-index-url"),
        "UV_FIND_LINKS": pip.get("find-links"),
        "SSL_CERT_FILE": pip.get("cert"),
        "UV_HTTP_TIMEOUT": pip.get("default-timeout") or pip.get("timeout"),
        "UV_NO_INDEX": pip.get("no-index"),
    }
    return {**{name: value for name, value in found.items() if value}, **environment}


def run(
    command: list[str], failure: str, environment: Mapping[str, str] | None = None, *, quiet: bool = False
) -> None:
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdout=sys.stderr,
            stderr=subprocess.PIPE if quiet else None,
            text=True,
            check=False,
        )
    except OSError as error:
        raise BootstrapError(f"{failure}: {error}") from error
    if done.returncode:
        if done.stderr:
            say(done.stderr.strip())
        raise BootstrapError(failure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
