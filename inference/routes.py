"""Follow the route tables: whole before anything is served, then each change; a route takes effect when its versions are checked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaException

from inference.model import Model
from inference.router import Route, ServedArm
from inference.triton import Triton
from inference.versions import Version, open_version, prove
from runtime import telemetry
from runtime.artifacts import ArtifactStore
from runtime.compacted import CompactedTopic
from runtime.service import Health
from runtime.settings import Settings
from schemas.errors import ArtifactError, Outage
from schemas.events import RouteTable
from schemas.topics import ROUTES

log = logging.getLogger(__name__)

REFRESH_SEC: Final = 0.2
CONFIRM_SEC: Final = 10.0
RETRY_OUTAGE_SEC: Final = 0.5
RETRY_FAILED_SEC: Final = 10.0
"""A version that failed its check is checked again this often: whoever mends the store needs no restart."""
REMEMBERED: Final = 64
"""Artifacts no longer named whose unloading is repeated: a batch in flight may have loaded one again."""


class Routes:
    """Keeps every model's `route` up to date. Runs on the event loop; reading Kafka and files is done in threads."""

    def __init__(
        self, settings: Settings, health: Health, triton: Triton, models: Mapping[str, Model]
    ) -> None:
        self._settings = settings
        self._health = health
        self._triton = triton
        self._models = models
        self._store = ArtifactStore(settings.artifacts_dir)
        self._tables: dict[str, RouteTable] = {}
        self._versions: dict[str, dict[str, Version]] = {name: {} for name in models}
        self._failed: dict[str, dict[str, str]] = {name: {} for name in models}
        self._gone: dict[str, list[str]] = {name: [] for name in models}
        self._changed: dict[str, asyncio.Event] = {name: asyncio.Event() for name in models}
        self._settled: dict[str, asyncio.Event] = {name: asyncio.Event() for name in models}
        self._asked: list[asyncio.Future[None]] = []

    async def confirm(self, model: Model) -> None:
        """Return when every table that was committed before this call is in effect for `model`.

        Whoever was told that a version answers may ask it: no request is rejected for want of a version by a table read too late.
        """
        asked = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        await asked
        await self._settled[model.spec.name].wait()

    async def follow(self) -> None:
        """Read the tables to their end, then apply what changes, for ever."""
        async with asyncio.TaskGroup() as group:
            first = True
            while True:
                try:
                    topic = await asyncio.to_thread(CompactedTopic, self._settings, ROUTES.name)
                except (Outage, KafkaException, KeyError) as error:
                    self._health.error(f"route tables cannot be read: {error}")
                    await asyncio.sleep(RETRY_OUTAGE_SEC)
                    continue
                self._take(topic.values)
                if first:
                    for model in self._models.values():
                        group.create_task(self._keep(model))
                    first = False
                try:
                    while True:
                        asked, self._asked = self._asked, []
                        try:
                            keys = await asyncio.to_thread(_read, topic, bool(asked))
                        except BaseException:
                            self._asked = [*asked, *self._asked]
                            raise
                        self._take({key: topic.values[key] for key in keys if key in topic.values})
                        for future in asked:
                            future.set_result(None)
                except (Outage, KafkaException) as error:
                    self._health.error(f"route tables: {error}")
                finally:
                    await asyncio.to_thread(topic.close)

    def _take(self, values: Mapping[bytes, bytes]) -> None:
        for key, value in values.items():
            try:
                table = msgspec.json.decode(value, type=RouteTable)
            except msgspec.MsgspecError as error:
                self._health.error(f"route table of {key!r}: {error}")
                continue
            known = self._tables.get(table.model)
            if table.model in self._models and (known is None or table.revision > known.revision):
                self._tables[table.model] = table
                self._changed[table.model].set()
                self._settled[table.model].clear()

    async def _keep(self, model: Model) -> None:
        """Put each new table of one model into effect; try failed versions again now and then."""
        name = model.spec.name
        changed = self._changed[name]
        while True:
            changed.clear()
            table = self._tables.get(name)
            if table is None:
                model.route = Route(name, 0)
                model.routed.set()
                self._settled[name].set()
                self.report()
                await changed.wait()
                continue
            await self._put_into_effect(model, table)
            if self._tables[name] is table:
                self._settled[name].set()
            try:
                async with asyncio.timeout(RETRY_FAILED_SEC if self._failed[name] else None):
                    await changed.wait()
            except TimeoutError:
                log.info("%s: checking failed versions again", name)

    async def _put_into_effect(self, model: Model, table: RouteTable) -> None:
        name = model.spec.name
        failed: dict[str, str] = {}
        served: list[ServedArm] = []
        for arm in table.arms:
            version = await self._ready(model, arm.artifact, failed)
            if version is not None:
                served.append(ServedArm(arm, version))
        self._failed[name] = failed
        live = tuple(one for one in served if one.arm.role == "live")
        shadows = tuple(one for one in served if one.arm.role == "shadow")
        model.route = Route(name, table.revision, live, shadows, table.rejections_pass_until_ms)
        model.routed.set()
        telemetry.gauge("tidemill_route_revision").labels(name).set(table.revision)
        self.report()
        await self._unload(model, table)

    async def _ready(self, model: Model, artifact: str, failed: dict[str, str]) -> Version | None:
        """The version, opened and proven; None and a line in `failed` if it must not serve. Waits while Triton is away."""
        name = model.spec.name
        known = self._versions[name].get(artifact)
        if known is not None:
            return known
        while True:
            try:
                version = await asyncio.to_thread(open_version, self._store, model.spec, artifact)
                await prove(self._triton, version)
            except Outage as error:
                if not model.away:
                    model.away = str(error)
                    self._health.error(f"{name}: Triton is away: {error}")
                await asyncio.sleep(RETRY_OUTAGE_SEC)
            except (ArtifactError, ValueError, KeyError) as error:
                failed[artifact] = str(error)
                telemetry.counter("tidemill_inferences_total").labels(name, artifact, "golden_failed").inc()
                if artifact not in self._failed[name]:
                    self._health.error(f"{name}: {artifact} must not serve: {error}")
                model.away = ""
                return None
            else:
                telemetry.counter("tidemill_inferences_total").labels(name, version.name, "golden").inc()
                self._versions[name][artifact] = version
                model.away = ""
                return version

    async def _unload(self, model: Model, table: RouteTable) -> None:
        """Let Triton drop the versions that no table names any more."""
        name = model.spec.name
        wanted = {arm.artifact for arm in table.arms} | {*table.retained, table.previous}
        gone = [artifact for artifact in self._versions[name] if artifact not in wanted]
        for artifact in gone:
            del self._versions[name][artifact]
        remembered = [artifact for artifact in self._gone[name] if artifact not in wanted]
        self._gone[name] = [*remembered, *gone][-REMEMBERED:]
        if gone and model.route is not None and model.route.live:
            try:
                await prove(self._triton, model.route.live[0].version, unload=",".join(self._gone[name]))
            except (Outage, ArtifactError) as error:
                log.info("%s: versions are unloaded with the next change: %s", name, error)

    def report(self) -> None:
        """Say in /health who serves."""
        detail: dict[str, Any] = {}
        for name, model in self._models.items():
            route = model.route
            arms = [] if route is None else [*route.live, *route.shadows]
            detail[name] = {
                "revision": 0 if route is None else route.revision,
                "arms": [
                    {
                        "name": s.arm.name,
                        "role": s.arm.role,
                        "version": s.version.name,
                        "artifact": s.arm.artifact,
                        "weight": s.arm.weight,
                    }
                    for s in arms
                ],
                "ready": sorted(self._versions[name]),
                "failed": self._failed[name],
            }
        self._health.detail(routes=detail)


def _read(topic: CompactedTopic, to_end: bool) -> list[bytes]:
    return topic.read_to_end(CONFIRM_SEC) if to_end else topic.refresh(REFRESH_SEC)
