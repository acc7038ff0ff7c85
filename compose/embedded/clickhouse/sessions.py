"""HTTP sessions: a connection that outlives a query, so that SET, USE and temporary tables hold for the next.

One query at a time per session, as in the server; a session ends when it was idle for its time-out.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from compose.embedded.clickhouse.access import User
from compose.embedded.clickhouse.engine import Connection, Engine
from compose.embedded.clickhouse.errors import ClickHouseError
from compose.embedded.clickhouse.requests import Session

Release = Callable[[], None]


@dataclass(slots=True)
class OpenSession:
    connection: Connection
    busy: bool = False
    expiry: asyncio.TimerHandle | None = None


class Sessions:
    """The open sessions by user and id. Its methods run in the event loop's thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[tuple[str, str], OpenSession] = {}

    def lease(self, user: User, wanted: Session | None) -> tuple[Connection, Release]:
        """A connection of its own, or that of the session asked for, and what gives it back."""
        if wanted is None:
            connection = self._engine.connect(user)
            return connection, connection.close
        return self._lease_session(user, wanted)

    def close(self) -> None:
        """End every session. None may be in use."""
        for key in list(self._open):
            self._expire(key)

    def _lease_session(self, user: User, wanted: Session) -> tuple[Connection, Release]:
        key = (user.name, wanted.id)
        session = self._open.get(key)
        if session is None:
            if wanted.must_exist:
                raise ClickHouseError(372, "SESSION_NOT_FOUND", f"Session {wanted.id} not found")
            session = self._open[key] = OpenSession(self._engine.connect(user, shared=True))
        if session.busy:
            raise ClickHouseError(
                373, "SESSION_IS_LOCKED", f"Session {wanted.id} is locked by a concurrent client"
            )
        if session.expiry is not None:
            session.expiry.cancel()
        session.busy = True

        def release() -> None:
            session.busy = False
            session.expiry = asyncio.get_running_loop().call_later(wanted.timeout_sec, self._expire, key)

        return session.connection, release

    def _expire(self, key: tuple[str, str]) -> None:
        session = self._open.pop(key)
        if session.expiry is not None:
            session.expiry.cancel()
        session.connection.close()
