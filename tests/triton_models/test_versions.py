from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from triton_models.versions import Versions


class Loader:
    """Loads when it is let; notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False
        self.open = threading.Event()
        self.open.set()

    def __call__(self, artifact: str) -> str:
        self.asked.append(artifact)
        assert self.open.wait(10)
        if self.fails:
            raise OSError(artifact)
        return artifact.upper()


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def versions(loader: Loader) -> Iterator[Versions[str]]:
    versions = Versions(loader)
    yield versions
    loader.open.set()
    versions.close()


def test_concurrent_calls_share_one_load(loader: Loader, versions: Versions[str]) -> None:
    loader.open.clear()
    futures = [versions.load("a") for _ in range(5)]
    assert versions.get("a") is None
    loader.open.set()
    assert [future.result(10) for future in futures] == ["A"] * 5
    assert versions.get("a") == "A"
    assert loader.asked == ["a"]


def test_versions_in_memory_are_there_while_another_is_loading(
    loader: Loader, versions: Versions[str]
) -> None:
    versions.load("a").result(10)
    loader.open.clear()
    loading = versions.load("b")
    assert versions.get("a") == "A"
    assert not loading.done()


def test_a_failed_load_is_tried_again(loader: Loader, versions: Versions[str]) -> None:
    loader.fails = True
    assert isinstance(versions.load("a").exception(10), OSError)
    assert versions.get("a") is None
    loader.fails = False
    assert versions.load("a").result(10) == "A"


def test_an_unloaded_version_is_loaded_anew(loader: Loader, versions: Versions[str]) -> None:
    versions.load("a").result(10)
    versions.unload("a")
    versions.unload("never seen")
    assert versions.get("a") is None
    versions.load("a").result(10)
    assert loader.asked == ["a", "a"]
