"""What the worker sets in libraries that offer no way to."""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer


def test_what_is_set_in_the_consumer_is_what_the_consumer_goes_by() -> None:
    """aiokafka hands these on to its fetcher under these names; under others they would be set, and mean nothing."""

    async def attributes() -> dict[str, object]:
        found: dict[str, object] = vars(
            AIOKafkaConsumer(fetch_max_wait_ms=7, isolation_level="read_committed")
        )
        return found

    found = asyncio.run(attributes())
    assert found["_fetch_max_wait_ms"] == 7
    assert found["_isolation_level"] == "read_committed"
