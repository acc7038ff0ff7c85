"""Which prediction each label means, and what is known of it: what was observed and joined lately, and ClickHouse for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from clickhouse_connect.driver.client import Client

from schemas.spec import ModelSpec
from streams.labels.observed import Observed
from streams.labels.recent import Recent
from streams.labels.record import Label
from streams.labels.revisions import Known
from warehouse import lookups


class Found(NamedTuple):
    """The answer for a batch of labels of one model."""

    ids: list[str]
    """The prediction of each label, "" while there is none."""
    predictions: pa.Table
    """All arms of these predictions (`warehouse.lookups.PREDICTION_SCHEMA`), those of a prediction together."""
    known: Mapping[str, Known]
    """Their newest labels, where they have one."""


def find(
    client: Client,
    spec: ModelSpec,
    labels: Sequence[Label],
    caught_up: Sequence[bool],
    observed: Observed,
    recent: Recent,
) -> Found:
    """Look `labels` up. `caught_up` says of each whether ClickHouse has all that was observed before its arrival: only then may its
    request id mean a later request.

    Raises:
        Outage: ClickHouse is away.
    """
    ids = _named(client, spec, labels, caught_up, observed)
    wanted = sorted({each for each in ids if each})
    lately = observed.predictions(spec.name, wanted)
    here = set(lately["id"].to_pylist())
    elsewhere = [each for each in wanted if each not in here]
    found = [lately, lookups.predictions(client, spec.name, elsewhere)] if elsewhere else [lately]
    predictions = pa.concat_tables(found)
    # Scored under another list of classes, a prediction cannot be held against a label of this one.
    predictions = predictions.filter(pc.equal(pc.list_value_length(predictions["scores"]), spec.outputs))
    present = set(predictions["id"].to_pylist())
    known = recent.find(present)
    # A prediction that was observed lately, and labelled by nobody here, was labelled by nobody at all.
    asked = sorted(
        each for each in present - known.keys() if each not in here or observed.labelled(spec.name, each)
    )
    for row in lookups.newest_labels(client, spec.name, asked).to_pylist() if asked else ():
        seen = frozenset((row["feedback_id"],))
        known[row["id"]] = Known(
            row["at_ms"], row["feedback_id"], row["revision"], row["truth"], row["truth_value"], seen
        )
    return Found([each if each in present else "" for each in ids], predictions, known)


def _named(
    client: Client,
    spec: ModelSpec,
    labels: Sequence[Label],
    caught_up: Sequence[bool],
    observed: Observed,
) -> list[str]:
    """The prediction id that each label names, itself or by its request id; "" if the request id is unknown."""
    ids = [
        label.prediction_id or observed.request(spec.name, label.request_id, label.received.timestamp_ms)
        for label in labels
    ]
    places = [place for place, named in enumerate(ids) if not named]
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
