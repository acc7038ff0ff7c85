"""Which artifacts nobody can need any more."""

from __future__ import annotations

from schemas.artifact import parse_version
from schemas.events import RouteTable


def doomed(artifacts: list[str], route: RouteTable, keep_updates: int) -> list[str]:
    """Of the model's `artifacts` (oldest version first): updates that are neither among the newest `keep_updates`, nor named in the
    route table, nor newer than the champion (they may be waiting for their decision). Majors stay for ever."""
    if not route.champion:
        return []
    needed = {arm.artifact for arm in route.arms} | set(route.retained) | {route.previous}
    champion = parse_version(route.champion)
    past_updates = [
        artifact
        for artifact in artifacts
        if (version := parse_version(artifact.partition("-")[0])) < champion and version[1] > 0
    ]
    return [
        artifact
        for artifact in past_updates[: max(len(past_updates) - keep_updates, 0)]
        if artifact not in needed
    ]
