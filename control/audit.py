"""The audit: proves over what Kafka still retains that nothing is missing and nothing is counted twice.

Per model it reads every committed request up to the end of the topic as it stands, computes the ids its rows must have, waits until the gateway has
answered them and the sink has inserted them, and compares them with `predictions.<model>` and with `internal.observations`.
It believes nothing that the stages say of themselves but how far they have come.
"""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import KafkaException

from control.bijection import (
    Fault,
    Observations,
    Predictions,
    expired,
    fault,
    locate,
    misordered,
    shadow_duplicates,
    shadow_missing,
    surplus,
    times,
    with_attempts,
)  # fmt: skip
from control.evidence import (
    Asked,
    dead_letters_of,
    gateway_passed,
    observations_of,
    predictions_of,
    redriven_of,
    requests_of,
    shadow_routes,
    sink_caught_up,
)
from runtime.reader import TopicReader
from runtime.settings import Settings
from schemas.errors import Outage, UnknownModel
from schemas.spec import ModelSpec, load_specs
from schemas.topics import REDRIVES
from warehouse.client import connect, mapped


class ModelAudit(msgspec.Struct, frozen=True, kw_only=True):
    """One model's account, in request rows."""

    model: str
    requests: int
    answered: int
    rejected: int
    in_flight: int
    """Not answered or not visible yet, by stages that had not caught up when the waiting ended."""
    missing: int
    """Requests that the gateway has passed, without an answer or rejection."""
    duplicated: int
    """Answers beyond the first."""
    unrequested: int
    """Answers to nothing that was asked."""
    misordered: int
    """Answers in another partition than their request, or out of its order."""
    observations_live: int
    observations_missing: int
    observations_duplicated: int
    observations_unrequested: int
    torn: int
    """Answer and observation disagree on whether the request was answered or rejected."""
    observations_shadow: int
    shadow_duplicated: int
    shadow_missing: int
    """Copies that a shadow arm owes. No fault: the gateway leaves out a shadow that does not answer in time."""
    dead_letters: int
    dead_letters_duplicated: int
    redriven: int = 0
    """Requests that operators sent again; each is an attempt of its own, with one answer and one observation."""
    redriven_answered: int = 0
    redriven_rejected: int = 0
    redrive_faults: int = 0
    """All of the faults above, of redriven requests."""
    examples: dict[str, list[str]]
    """Fault → some prediction ids."""

    @property
    def faults(self) -> int:
        """What must be zero."""
        return sum(getattr(self, name) for name in FAULTS)

    @property
    def ok(self) -> bool:
        """The bijection holds, and nothing is in flight that could still break it."""
        return self.faults == 0 and self.in_flight == 0


FAULTS: Final = (
    "missing", "duplicated", "unrequested", "misordered", "observations_missing", "observations_duplicated", "observations_unrequested",
    "torn", "shadow_duplicated", "dead_letters_duplicated", "redrive_faults",
)  # fmt: skip


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """The accounts of all audited models."""

    ok: bool
    took_sec: float
    models: list[ModelAudit]


def audit(settings: Settings, models: list[str] | None = None, wait_sec: float = 10.0) -> AuditReport:
    """Audit `models` (all of them by default), waiting up to `wait_sec` for the stages to catch up with what was asked before.

    Raises:
        UnknownModel: there is no spec of that name, or it has no topics yet.
        Outage: Kafka or ClickHouse is away.
    """
    started = time.monotonic()
    known = load_specs(settings.models_dir)
    for name in models or []:
        if name not in known:
            raise UnknownModel(
                f"no model {name!r}: expected one of {', '.join(known) or 'none, there is no spec'}"
            )
    client = connect(settings.clickhouse_url, settings.clickhouse_user, settings.clickhouse_password)
    reader = TopicReader(settings, "audit")
    try:
        deadline = started + wait_sec
        accounts = [_account(settings, client, reader, known[name], deadline) for name in models or known]
    except KafkaException as error:
        raise Outage(f"Kafka: {error.args[0].str()}") from error
    except ClickHouseError as error:
        raise mapped(error) from error
    finally:
        reader.close()
        client.close()
    return AuditReport(
        ok=all(account.ok for account in accounts),
        took_sec=round(time.monotonic() - started, 3),
        models=accounts,
    )


class _Compared(NamedTuple):
    """Requests against their answers and observations."""

    requests: int
    answered: int
    rejected: int
    in_flight: int
    faults: dict[str, Fault]

    @property
    def examples(self) -> dict[str, list[str]]:
        return {name: found.examples for name, found in self.faults.items() if found.rows}


def _account(
    settings: Settings, client: Client, reader: TopicReader, spec: ModelSpec, deadline: float
) -> ModelAudit:
    model = spec.name
    asked = requests_of(settings, reader, spec)
    again = redriven_of(settings, reader, spec)
    passed = gateway_passed(settings, asked, deadline)
    passed_again = gateway_passed(settings, again, deadline)
    predictions = predictions_of(reader, model)
    visible = sink_caught_up(settings, reader, deadline)
    observations, arms = observations_of(client, model, asked, again)

    # A redriven request has its original's id, so the attempt is part of it; what is redriven and does not say what it was has none.
    tried, seen = (with_attempts(found.ids, found.attempts) for found in (predictions, observations))
    of_redrive = (predictions.attempts > 0) | (locate(again.requests, tried) >= 0)
    row_of_redrive = (observations.attempts > 0) | (locate(again.requests, seen) >= 0)
    first = observations.only(~row_of_redrive)
    ordinary = _compare(asked, passed, predictions.only(~of_redrive), first, visible)
    redriven = _compare(
        again,
        passed_again,
        predictions._replace(ids=tried).only(of_redrive),
        observations._replace(ids=seen).only(row_of_redrive),
        visible,
    )
    dead_letters, repeated = dead_letters_of(client, model, asked.topic_id)
    return ModelAudit(
        model=model,
        requests=ordinary.requests,
        answered=ordinary.answered,
        rejected=ordinary.rejected,
        in_flight=ordinary.in_flight + redriven.in_flight,
        observations_live=int((first.live & (locate(asked.requests, first.ids) >= 0)).sum()),
        observations_shadow=int((~first.live).sum()),
        shadow_missing=shadow_missing(
            first, locate(asked.requests, first.ids), shadow_routes(client, model, arms)
        ),
        dead_letters=dead_letters,
        dead_letters_duplicated=repeated,
        redriven=redriven.requests,
        redriven_answered=redriven.answered,
        redriven_rejected=redriven.rejected,
        redrive_faults=sum(found.rows for found in redriven.faults.values()),
        examples={
            **ordinary.examples,
            **{f"redrive: {name}": ids for name, ids in redriven.examples.items()},
        },
        **{name: found.rows for name, found in ordinary.faults.items()},
    )


def _compare(
    asked: Asked, passed: Any, predictions: Predictions, observations: Observations, visible: bool
) -> _Compared:
    requests, n = asked.requests, len(asked.requests.ids)
    answers = locate(requests, predictions.ids)
    counts = times(answers, n)
    seen = locate(requests, observations.ids)
    live_counts = times(np.where(observations.live, seen, -1), n)
    unseen = (counts > 0) & (live_counts == 0)
    unknown = seen < 0
    if asked.truncated and asked.topic.startswith(f"{REDRIVES.name}."):
        # An observation does not say through which redrive it came: Kafka may have dropped it.
        unknown[:] = False
    first_answers = np.zeros(n, dtype=bool)
    first_answers[answers[(answers >= 0) & predictions.answered]] = True
    return _Compared(
        n,
        int(first_answers.sum()),
        int(((counts > 0) & ~first_answers).sum()),
        int(((counts == 0) & ~passed).sum()) + (0 if visible else int(unseen.sum())),
        {
            "missing": fault((counts == 0) & passed, requests.ids),
            "duplicated": surplus(counts, requests.ids),
            "unrequested": fault(
                (answers < 0) & ~expired(predictions, answers, asked.truncated), predictions.ids
            ),
            "misordered": misordered(requests, predictions, answers),
            "observations_missing": fault(unseen & visible, requests.ids),
            "observations_duplicated": surplus(live_counts, requests.ids),
            "observations_unrequested": fault(unknown, observations.ids),
            "torn": fault(_torn(n, predictions, answers, observations, seen), requests.ids),
            "shadow_duplicated": shadow_duplicates(observations, seen),
        },
    )


def _torn(n: int, predictions: Predictions, answers: Any, observations: Observations, seen: Any) -> Any:
    """Requests whose answer and whose live observation disagree."""
    said = np.full(n, -1, dtype=np.int8)
    said[answers[answers >= 0]] = predictions.answered[answers >= 0]
    live = observations.live & (seen >= 0)
    noted = np.full(n, -1, dtype=np.int8)
    noted[seen[live]] = observations.answered[live]
    return (said >= 0) & (noted >= 0) & (said != noted)
