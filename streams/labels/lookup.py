"""Which prediction each label means, and what is known of it: ClickHouse, and before it what was joined lately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client

from schemas.spec import ModelSpec
from streams.labels.recent import Recent
from streams.labels.record import Label
from streams.labels.revisions import Known
from warehouse import lookups


class Found(NamedTuple):
    """The answer for a batch of labels of one model."""

    ids: list[str]
    """The prediction of each label, "" while there is none."""
    predictions: pa.Table
    """All arms of these predictions (`warehouse.lookups.predictions`)."""
    known: Mapping[str, Known]
    """Their newest labels, where they have one."""


def find(
    client: Client, spec: ModelSpec, labels: Sequence[Label], caught_up: Sequence[bool], recent: Recent
) -> Found:
    """Look `labels` up. `caught_up` says of each whether ClickHouse has all that was observed before its arrival: only then may its
    request id mean a later request.

    Raises:
        Outage: ClickHouse is away.
    """
    ids = _named(client, spec, labels, caught_up)
    wanted = sorted({each for each in ids if each})
    predictions = lookups.predictions(client, spec.name, wanted)
    # Scored under another list of classes, a prediction cannot be held against a label of this one.
    predictions = predictions.filter(pc.equal(pc.list_value_length(predictions["scores"]), spec.outputs))
    present = set(predictions["id"].to_pylist())
    known = recent.find(present)
    asked = sorted(present - known.keys())
    for row in lookups.newest_labels(client, spec.name, asked).to_pylist() if asked else ():
        seen = frozenset((row["feedback_id"],))
        known[row["id"]] = Known(
            row["at_ms"], row["feedback_id"], row["revision"], row["truth"], row["truth_value"], seen
        )
    return Found([each if each in present else "" for each in ids], predictions, known)


def _named(client: Client, spec: ModelSpec, labels: Sequence[Label], caught_up: Sequence[bool]) -> list[str]:
    """The prediction id that each label names, itself or by its request id; "" if the request id is unknown."""
    ids = [label.prediction_id for label in labels]
    places = [place for place, label in enumerate(labels) if label.request_id]
    if places:
        answer = lookups.requests(
            client,
            spec.name,
            [labels[place].request_id for place in places],
            [labels[place].received.timestamp_ms for place in places],
        )
        for place, before, prediction_id in zip(
            *(answer[name].to_pylist() for name in ("place", "before", "id")), strict=True
        ):
            if before or caught_up[places[place]]:
                ids[places[place]] = prediction_id
    return ids
