"""`python -m compose.setup`: topics and tables for every model under the models folder. Idempotent; run before the services."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection
from typing import Final

from confluent_kafka import KafkaException, TopicPartition

from runtime.kafka import admin, consumer, create_topics
from runtime.settings import Settings, load_settings
from schemas.errors import TidemillError
from schemas.spec import ModelSpec, load_specs
from schemas.topics import COMMANDS, FEEDBACK, OBSERVATIONS, REQUESTS, TOPICS, Topic
from warehouse.client import connect
from warehouse.migrate import migrate
from warehouse.model_views import model_view

GROUPS: Final = {"gateway": REQUESTS, "sink": OBSERVATIONS, "labels": FEEDBACK, "control": COMMANDS}
"""Each with one of the topics that it reads."""


def set_up(settings: Settings) -> list[str]:
    """Create what is missing and return a line for each thing that was created."""
    specs = load_specs(settings.models_dir)
    created = create_topics(admin(settings), wanted_topics(specs))
    lines = [f"topic {name}" for name in created]
    _make_known(settings, specs, created)
    client = connect(settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password)
    lines += [f"migration {name}" for name in migrate(client)]
    for spec in specs.values():
        client.command(model_view(spec))
    client.close()
    return lines


def _make_known(settings: Settings, specs: dict[str, ModelSpec], created: Collection[str]) -> None:
    """Commit where they begin for groups whose topics were just created: of a group with any offset it is believed at once that it has no
    others (`runtime.offsets`)."""
    for group, topic in GROUPS.items():
        names = [topic.for_model(name) for name in specs] if topic.per_model else [topic.name]
        if new := [TopicPartition(name, 0, 0) for name in names if name in created]:
            client = consumer(settings, group)
            # Refused if it has members, which have committed something: a model was added. Whatever else it is, the group is only waited for longer.
            with contextlib.suppress(KafkaException):
                client.commit(offsets=new, asynchronous=False)
            client.close()


def wanted_topics(specs: dict[str, ModelSpec]) -> list[tuple[str, Topic, int]]:
    """(name, topic, partitions) in the order in which to create them."""
    wanted = []
    for topic in TOPICS:
        if topic.per_model:
            wanted += [(topic.for_model(name), topic, spec.serve.partitions) for name, spec in specs.items()]
        else:
            wanted.append((topic.name, topic, topic.partitions))
    return wanted


def main() -> int:
    """Entry point; 2 and one line if something cannot be created."""
    started = time.monotonic()
    try:
        lines = set_up(load_settings())
    except TidemillError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    for line in lines:
        print(f"created {line}")
    print(f"setup done in {time.monotonic() - started:.1f} s, {len(lines)} things created")
    return 0


if __name__ == "__main__":
    sys.exit(main())
