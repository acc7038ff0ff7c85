"""Dead letters and redrives: the original bytes and headers, followed by a block of headers of ours.

Ours stand last, each once, so that they are told from the original's, whatever those are called: a producer may send `tidemill-…`
headers of its own, they are kept and mean nothing. All values are UTF-8 text.
"""

from __future__ import annotations

import uuid
from typing import Final

import msgspec

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
ATTEMPT: Final = "tidemill-attempt"
DIED_AT_MS: Final = "tidemill-died-at-ms"
OMITTED_BYTES: Final = "tidemill-omitted-bytes"

ORIGIN_HEADERS: Final = (TOPIC, TOPIC_ID, PARTITION, OFFSET, TIMESTAMP_MS, ATTEMPT)
"""What a redriven record carries: where the original lies, and which attempt this is."""
DEAD_LETTER_HEADERS: Final = (
    REASON,
    STAGE,
    MESSAGE,
    FIELD,
    MODEL,
    *ORIGIN_HEADERS,
    DIED_AT_MS,
    OMITTED_BYTES,
)
"""What a dead letter carries: why, and the same. Of a redriven record it names the original, never the redrive. The last stands only where
the original is too large to be copied (a compressed record may be of any size): then key, value and headers are left out."""
MAX_ATTEMPT: Final = 255


class Origin(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where the original record lies, and how often it was redriven."""

    topic: str
    topic_id: uuid.UUID
    partition: int
    offset: int
    timestamp_ms: int
    """-1 where the original had none."""
    attempt: int = 0
    """0: the original itself; n: its n-th redrive."""
