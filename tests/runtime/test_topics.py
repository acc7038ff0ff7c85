"""A service that begins before Kafka does."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from compose.embedded.ports import HOST, free_ports
from compose.embedded.stack import Stack
from runtime import kafka, topics
from runtime.kafka import admin, create_topics, topic_ids
from runtime.service import Health, Stop
from runtime.settings import Settings
from runtime.topics import Topics, existing_topics
from schemas.errors import Outage
from schemas.topics import OBSERVATIONS
from tests.waiting import until


def test_what_is_missing_is_waited_for_and_said(infrastructure: Stack) -> None:
    settings, health, name = infrastructure.settings, Health("test"), f"late-{uuid.uuid4()}"
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(existing_topics, settings, [name], health, Stop())
        until(lambda: name in (health.snapshot()["last_error"] or ""), "it says what it waits for")
        assert not found.done()
        client = admin(settings)
        create_topics(client, [(name, OBSERVATIONS, 1)])
        assert found.result(30) == topic_ids(client, [name])


def test_a_stop_ends_the_wait_for_a_broker() -> None:
    (nobody,) = free_ports(1)
    stop, health = Stop(), Health("test")
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(
            existing_topics, Settings(kafka_bootstrap=f"{HOST}:{nobody}"), ["requests"], health, stop
        )
        until(lambda: health.snapshot()["last_error"] is not None, "it says that nobody answers")
        stop.set()
        assert found.result(30) is None


def test_a_client_that_fails_is_replaced(infrastructure: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    (nobody,) = free_ports(1)
    settings, name = infrastructure.settings, f"there-{uuid.uuid4()}"
    create_topics(admin(settings), [(name, OBSERVATIONS, 2)])
    catalogue = Topics(settings)
    with monkeypatch.context() as broken:
        # One that has lost its broker for good.
        lost = admin(Settings(kafka_bootstrap=f"{HOST}:{nobody}"))
        broken.setattr(kafka, "admin", lambda _: lost)
        broken.setattr(topics, "REQUEST_TIMEOUT_SEC", 0.5)
        with pytest.raises(Outage):
            catalogue.places()
    assert {(name, 0), (name, 1)} <= catalogue.places()
    assert catalogue.ids([name]).keys() == {name}
