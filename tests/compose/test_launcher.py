"""The launcher and the installation, without a network: a checkout of links, with interpreters that pretend."""

import os
import subprocess
from pathlib import Path

import pytest

from compose import bootstrap
from compose.embedded import parts

LAUNCHER = parts.ROOT / "tidemill"


def checkout(tmp_path: Path) -> Path:
    """A copy of what the launcher reads, so that nothing is installed into the real one."""
    root = tmp_path / "checkout"
    for name in (
        "tidemill",
        "requirements.lock",
        "compose/embedded/parts.toml",
        "compose/embedded/kafka_jars.sha256",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((parts.ROOT / name).read_bytes())
    (root / "tidemill").chmod(0o755)
    return root


def program(file: Path, script: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def launch(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(root / "tidemill"), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_launcher_is_posix_shell() -> None:
    assert LAUNCHER.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", str(LAUNCHER)], check=True)


def test_a_wrong_python_is_refused_in_one_line_that_says_what_was_found(tmp_path: Path) -> None:
    other = program(tmp_path / "python3.13", 'echo "CPython 3.13.0" >&2; exit 1')
    done = launch(checkout(tmp_path), "up", TIDEMILL_PYTHON=str(other))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "needs CPython 3.11" in done.stderr
    assert "CPython 3.13.0" in done.stderr


def test_a_failing_shim_is_passed_over(tmp_path: Path) -> None:
    shim = program(tmp_path / "shim", "exit 127")
    good = program(tmp_path / "good", '[ "$1" = -c ] || echo "$@"')
    done = launch(checkout(tmp_path), "up", TIDEMILL_PYTHON=f"{shim} {good}")
    assert done.returncode == 0
    assert "compose/bootstrap.py" in done.stdout


def test_an_installed_checkout_becomes_the_command_line_at_once(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    program(root / ".venv/bin/python", 'printf "%s|" "$@"')
    good = program(tmp_path / "good", '[ "$1" = -c ] || printf "%s" "$3"')
    stamp = launch(root, "up", TIDEMILL_PYTHON=str(good)).stdout  # what bootstrap would be told to write
    (root / ".tidemill").mkdir()
    (root / ".tidemill" / "installed").write_text(stamp + "\n")
    assert launch(root, "sql", "SELECT 1", "--json").stdout == "-P|-m|cli|sql|SELECT 1|--json|"


def test_a_changed_lock_installs_again(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    good = program(tmp_path / "good", '[ "$1" = -c ] || printf "%s" "$3"')
    before = launch(root, "up", TIDEMILL_PYTHON=str(good)).stdout
    with (root / "requirements.lock").open("a") as lock:
        lock.write("# another\n")
    assert launch(root, "up", TIDEMILL_PYTHON=str(good)).stdout != before


def test_uv_takes_index_certificate_and_wheels_from_pips_configuration() -> None:
    pip = {"index-url": "file:///mirror", "cert": "/ca.pem", "find-links": "/wheels", "unrelated": "1"}
    assert bootstrap.uv_environment({"HOME": "/h"}, pip) == {
        "HOME": "/h", "UV_DEFAULT_INDEX": "file:///mirror", "SSL_CERT_FILE": "/ca.pem", "UV_FIND_LINKS": "/wheels",
    }  # fmt: skip


def test_what_is_set_for_uv_itself_wins_over_pip() -> None:
    assert bootstrap.uv_environment({"UV_DEFAULT_INDEX": "file:///own"}, {"index-url": "file:///pip"}) == {
        "UV_DEFAULT_INDEX": "file:///own"
    }


def test_too_little_disk_is_one_line_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "wanted", lambda: [("everything", 1, 1 << 60)])
    with pytest.raises(bootstrap.BootstrapError, match=r"GB free, the installation needs 1152921504\.6 GB"):
        bootstrap.check_disk()
