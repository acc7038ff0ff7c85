"""`python -m tests.streams.worker.unknowing`: a worker to whom the broker has not yet named the topic of observations when it leads its group."""

from __future__ import annotations

import sys
from typing import Any

from aiokafka.cluster import ClusterMetadata

from schemas.topics import OBSERVATIONS
from streams.worker.service import main

_known = ClusterMetadata.partitions_for_topic


def _partitions_for_topic(self: Any, topic: str) -> Any:
    return None if topic == OBSERVATIONS.name else _known(self, topic)


if __name__ == "__main__":
    ClusterMetadata.partitions_for_topic = _partitions_for_topic
    sys.exit(main())
