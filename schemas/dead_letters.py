"""Dead letters: the original bytes and headers, plus headers that say why, where and from which coordinates."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "tidemill-"
REASON: Final = "tidemill-reason"
STAGE: Final = "tidemill-stage"
MESSAGE: Final = "tidemill-message"
FIELD: Final = "tidemill-field"
MODEL: Final = "tidemill-model"
TOPIC: Final = "tidemill-topic"
TOPIC_ID: Final = "tidemill-topic-id"
PARTITION: Final = "tidemill-partition"
OFFSET: Final = "tidemill-offset"
TIMESTAMP_MS: Final = "tidemill-timestamp-ms"
DIED_AT_MS: Final = "tidemill-died-at-ms"
"""All values are UTF-8 text. Original headers are kept as they were; those that start with `tidemill-` are dropped first."""
