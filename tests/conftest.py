"""The embedded stack for tests: started once a session, on ephemeral ports, in a folder of its own, and always ended.

A test that asks for `infrastructure` is marked `stack` by that alone, so that `tidemill test --fast` can leave it out.
"""

from collections.abc import Iterator

import pytest

from compose.embedded.stack import Stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "infrastructure" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.stack)


@pytest.fixture(scope="session")
def infrastructure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Kafka, tritonserver and ClickHouse with topics and migrations, and none of our services."""
    with Stack(tmp_path_factory.mktemp("infrastructure"), services=()) as running:
        yield running
