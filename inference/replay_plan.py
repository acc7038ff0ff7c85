"""What a replay means: which artifact, which offsets, and the run's name, which follows from both."""

from __future__ import annotations

import msgspec
from confluent_kafka import KafkaException

from inference.ranges import Bound, Range, open_reader, resolve
from runtime.artifacts import ArtifactStore
from runtime.compacted import CompactedTopic
from runtime.settings import Settings
from schemas.errors import Outage, UnknownModel, UserError
from schemas.events import RouteTable
from schemas.identity import name_id
from schemas.spec import ModelSpec, load_specs
from schemas.topics import REQUESTS, ROUTES


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A run, before it is run."""

    run_id: str
    name: str
    """As the person gave it, "" if none was given."""
    model: str
    version: str
    artifact: str
    range: Range


def plan(settings: Settings, model: str, start: Bound, end: Bound, version: str = "", name: str = "") -> Plan:
    """What a replay of `model` from `start` to `end` means: `version` is a version, an artifact's name, or "" for the live champion;
    the run is called `name` and a hash, by default `model-version` and a hash.

    Raises:
        UserError: no such model or version, an empty range, or one that Kafka no longer has.
        Outage: Kafka does not answer.
    """
    spec = spec_of(settings, model)
    store = ArtifactStore(settings.artifacts_dir)
    try:
        artifact = choose(store.artifacts(model), route_table(settings, model), model, version)
        reader = open_reader(settings)
        try:
            found = resolve(settings, reader, REQUESTS.for_model(spec.name), start, end)
        finally:
            reader.close()
    except KafkaException as error:
        raise Outage(f"Kafka: {error.args[0].str()}") from error
    number = artifact.partition("-")[0]
    places = ((span.partition, span.first, span.end) for span in found.spans)
    identity = name_id("replay", name, model, artifact, found.topic_id, *places).hex[:12]
    return Plan(
        run_id=f"{name or f'{model}-{number}'}-{identity}",
        name=name,
        model=model,
        version=number,
        artifact=artifact,
        range=found,
    )


def choose(artifacts: list[str], table: RouteTable | None, model: str, version: str) -> str:
    """The artifact that `version` means: one the store has, the routed one if several have that number.

    Raises:
        UserError: there is none, or it cannot be told which.
    """
    named = [] if table is None else [arm.artifact for arm in table.arms]
    if not version:
        live = (
            [arm.artifact for arm in table.arms if arm.role == "live" and arm.version == table.champion]
            if table
            else []
        )
        if not live:
            raise UserError(f"{model} has no live champion: name one with --version; {_in_store(artifacts)}")
        return live[0]
    found = [artifact for artifact in artifacts if version in (artifact, artifact.partition("-")[0])]
    found = [artifact for artifact in found if artifact in named] or found
    if not found:
        raise UserError(f"--version: {model} has no version {version!r}; {_in_store(artifacts)}")
    if len(found) > 1:
        raise UserError(f"--version: {version!r} is more than one: expected one of {', '.join(found)}")
    return found[0]


def _in_store(artifacts: list[str]) -> str:
    return f"the store has {', '.join(artifacts) or 'none'}"


def route_table(settings: Settings, model: str) -> RouteTable | None:
    """The model's route table as it stands."""
    topic = CompactedTopic(settings, ROUTES.name)
    topic.close()
    raw = topic.values.get(model.encode())
    return None if raw is None else msgspec.json.decode(raw, type=RouteTable)


def spec_of(settings: Settings, model: str) -> ModelSpec:
    """The model's spec. Raises `UnknownModel`."""
    known = load_specs(settings.models_dir)
    if model not in known:
        raise UnknownModel(
            f"no model {model!r}: expected one of {', '.join(known) or 'none, there is no spec'}"
        )
    return known[model]
