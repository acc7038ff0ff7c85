"""Encode and infer. An outage holds the rows; a poison row is found by halving and is the only one that is refused.

No row is blamed before the golden batch of the same version has passed again: a broken server or version holds all rows
instead of refusing them all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from features.columns import Columns
from features.encode import encode
from inference.model import Model
from inference.router import Share
from inference.triton import InferenceFailed, Triton
from inference.versions import Version, prove
from runtime import telemetry
from runtime.service import Health
from schemas.errors import ArtifactError, Outage, TidemillError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)

DEATHS: Final = 3
"""Times that the server may go away while it works on the same rows, and be back, before the rows are halved."""
PROBE_SEC: Final = (0.05, 1.0)
"""First and longest wait between two probes."""
SHADOW_GRACE_SEC: Final = 1.0
"""A shadow that has not answered so long after the live answer is given up for this micro-batch."""
SHADOW_STRIKES: Final = 8
"""Micro-batches in a row that a shadow may miss before it is left out for a while (several are under way at once)."""
SHADOW_REST_SEC: Final = 10.0


class Superseded(TidemillError):
    """The rows were for a version that no arm names any more: route them again."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What one arm said about its share of the rows."""

    share: Share
    columns: Columns
    """The share's rows."""
    scores: NDArray[np.float32]
    """[rows, outputs]; all NaN where the inference failed."""
    failed: NDArray[np.bool_]
    infer_ms: float


class Inference:
    """Asks Triton, for all models."""

    def __init__(self, triton: Triton, health: Health, tracer: Tracer | None) -> None:
        self._triton = triton
        self._tracer = tracer
        self._health = health
        self._strikes: dict[str, int] = {}
        self._resting_until: dict[str, float] = {}

    async def answers(self, model: Model, columns: Columns, shares: list[Share]) -> list[Answer]:
        """One answer a share, in order. Live arms are waited for, however long it takes; shadows only a moment longer.

        Raises:
            Superseded: a live version failed, and the route names another by now.
        """
        live: dict[int, asyncio.Task[Answer]] = {}
        shadows: dict[int, tuple[asyncio.Task[Answer | None], Columns]] = {}
        for index, share in enumerate(shares):
            mine = columns if len(share.rows) == columns.rows else columns.take(share.rows)
            if share.served.arm.role == "live":
                live[index] = asyncio.create_task(self._live(model, share, mine))
            else:
                shadows[index] = asyncio.create_task(self._first_try(share, mine)), mine
        try:
            found = {index: await task for index, task in live.items()}
            for index, (task, mine) in shadows.items():
                found[index] = await self._shadow(task, shares[index], mine)
        finally:
            for unfinished in [*live.values(), *(task for task, _ in shadows.values())]:
                unfinished.cancel()
        return [found[index] for index in range(len(shares))]

    async def _live(self, model: Model, share: Share, columns: Columns) -> Answer:
        started = time.perf_counter()
        scores = await self._patiently(model, share.served.version, columns)
        return _answer(share, columns, scores, started)

    async def _patiently(self, model: Model, version: Version, columns: Columns) -> NDArray[np.float32]:
        """Scores, with a row of NaN for each row that fails alone; waits out every outage."""
        for _ in range(DEATHS):
            try:
                return await self._once(version, columns)
            except Outage as error:
                await self._until_proven(model, version, str(error))
            except InferenceFailed as error:
                log.warning("%s", error)
                await self._until_proven(model, version, str(error))
                break
        if columns.rows == 1:
            return _failed(version, 1)
        half = columns.rows // 2
        parts = [np.arange(half), np.arange(half, columns.rows)]
        return np.concatenate([await self._patiently(model, version, columns.take(part)) for part in parts])

    async def _until_proven(self, model: Model, version: Version, why: str) -> None:
        """Return when the version's golden inference passes; until then the model's rows are held.

        Raises:
            Superseded: the route names another version by now.
        """
        wait_sec, longest_sec = PROBE_SEC
        async with model.probing:
            while True:
                if not _names(model, version):
                    # Rolled back: who holds its rows must not wait for it.
                    model.away = ""
                    raise Superseded(f"{version.name} of {model.spec.name} is not routed to any more")
                try:
                    await prove(self._triton, version)
                except (Outage, ArtifactError) as error:
                    if not model.away:
                        self._health.error(f"{model.spec.name}: rows are held: {why}")
                    model.away = str(error)
                    await asyncio.sleep(wait_sec)
                    wait_sec = min(2 * wait_sec, longest_sec)
                else:
                    if model.away:
                        log.info("%s: Triton answers again", model.spec.name)
                    model.away = ""
                    return

    async def _first_try(self, share: Share, columns: Columns) -> Answer | None:
        """A shadow's answer, or None."""
        if self._resting_until.get(share.served.arm.artifact, 0.0) > time.monotonic():
            return None
        started = time.perf_counter()
        try:
            scores = await self._once(share.served.version, columns)
        except (Outage, InferenceFailed) as error:
            log.info("shadow: %s", error)
            return None
        return _answer(share, columns, scores, started)

    async def _shadow(self, task: asyncio.Task[Answer | None], share: Share, columns: Columns) -> Answer:
        """The shadow's answer if it is there within its grace, tried once more in halves if it failed; else none of its rows."""
        artifact = share.served.arm.artifact
        version = share.served.version
        started = time.perf_counter()
        try:
            async with asyncio.timeout(SHADOW_GRACE_SEC):
                answer = await task
                if answer is None and self._resting_until.get(artifact, 0.0) <= time.monotonic():
                    answer = _answer(share, columns, await self._impatiently(version, columns), started)
        except TimeoutError:
            answer = None
            self._strikes[artifact] = self._strikes.get(artifact, 0) + 1
            if self._strikes[artifact] >= SHADOW_STRIKES:
                self._strikes[artifact] = 0
                self._resting_until[artifact] = time.monotonic() + SHADOW_REST_SEC
                self._health.error(
                    f"{version.spec.name}: shadow {artifact} is too slow: left out for {SHADOW_REST_SEC:.0f} s"
                )
        else:
            self._strikes.pop(artifact, None)
        return answer or _answer(share, columns, _failed(version, columns.rows), started)

    async def _impatiently(self, version: Version, columns: Columns) -> NDArray[np.float32]:
        try:
            return await self._once(version, columns)
        except Outage:
            return _failed(version, columns.rows)
        except InferenceFailed:
            if columns.rows == 1:
                return _failed(version, 1)
        half = columns.rows // 2
        parts = [np.arange(half), np.arange(half, columns.rows)]
        return np.concatenate([await self._impatiently(version, columns.take(part)) for part in parts])

    async def _once(self, version: Version, columns: Columns) -> NDArray[np.float32]:
        """One try: a call, or, of a record with more rows than a micro-batch may have, as many as it takes."""
        limit = version.spec.serve.max_batch_rows
        if columns.rows <= limit:
            return await self._call(version, columns)
        parts = np.split(np.arange(columns.rows), range(limit, columns.rows, limit))
        return np.concatenate([await self._call(version, columns.take(part)) for part in parts])

    async def _call(self, version: Version, columns: Columns) -> NDArray[np.float32]:
        spec = version.spec
        counts = telemetry.counter("tidemill_inferences_total")
        tensors = encode(spec, version.state, columns)
        started = time.perf_counter()
        try:
            with telemetry.span(
                self._tracer, "triton.infer", model=spec.name, version=version.name, rows=columns.rows
            ):
                scores = await self._triton.infer(spec, version.artifact, tensors, columns.rows)
        except Outage:
            counts.labels(spec.name, version.name, "away").inc()
            raise
        except InferenceFailed:
            counts.labels(spec.name, version.name, "failed").inc()
            raise
        counts.labels(spec.name, version.name, "answered").inc()
        telemetry.histogram("tidemill_inference_seconds").labels(spec.name).observe(
            time.perf_counter() - started
        )
        return scores


def _answer(share: Share, columns: Columns, scores: NDArray[np.float32], started: float) -> Answer:
    failed: NDArray[np.bool_] = np.logical_not(np.isfinite(scores).all(axis=1))
    return Answer(share, columns, scores, failed, (time.perf_counter() - started) * 1000)


def _failed(version: Version, rows: int) -> NDArray[np.float32]:
    return np.full((rows, version.spec.outputs), np.nan, np.float32)


def _names(model: Model, version: Version) -> bool:
    return model.route is None or any(
        served.version.artifact == version.artifact for served in model.route.live
    )
