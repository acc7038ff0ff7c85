"""Redriven records: what an operator sent again, under the identity that it had.

A redriven request has the prediction id of its original (the origin's topic id, partition, offset and timestamp) and an attempt
of its own. Only what comes through `redrives.<model>` is asked who it was, so only who may write there can say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from confluent_kafka import Message

from inference.progress import Slice
from runtime.dead_letters import redriven_from
from schemas.dead_letters import Origin
from schemas.errors import Rejection
from schemas.topics import REDRIVES, REQUESTS


class Redriven(NamedTuple):
    """The redriven records of a micro-batch, by index."""

    origins: dict[int, Origin]
    rejections: dict[int, Rejection]
    """Those that do not say who they were; they keep the identity of where they lie."""


NONE: Final = Redriven({}, {})


def redriven(model: str, batch: Sequence[tuple[Slice, Sequence[Message]]]) -> Redriven:
    """Who the records of a micro-batch were that came through the model's redrives."""
    topic, requests = REDRIVES.for_model(model), REQUESTS.for_model(model)
    if all(piece.assignment.topic != topic for piece, _ in batch):
        return NONE
    origins: dict[int, Origin] = {}
    refused: dict[int, Rejection] = {}
    start = 0
    for piece, messages in batch:
        if piece.assignment.topic == topic:
            for index, message in enumerate(messages, start):
                try:
                    origins[index] = redriven_from(message, requests)
                except Rejection as rejection:
                    refused[index] = rejection.bare()
        start += len(messages)
    return Redriven(origins, refused)
